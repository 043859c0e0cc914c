"""What a release is made with, and what CI asks of what it is made from."""
