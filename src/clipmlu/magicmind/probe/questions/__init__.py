"""The questions about the SDK, and the program that tries them beside it."""
