"""What the tests of the whole share: a corner of the cluster for each test, traffic, and ways to look."""
