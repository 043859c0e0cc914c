"""Traffic for the e2e: traces, the client that sends them, and the account of what came back."""
