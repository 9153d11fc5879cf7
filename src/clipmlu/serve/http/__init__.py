"""HTTP around the service: the application, bodies of requests, answers and errors."""
