"""The client of the driver, which runs in a worker or in this process."""
