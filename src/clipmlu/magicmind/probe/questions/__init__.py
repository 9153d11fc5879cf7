"""The program that tests undocumented SDK behaviour; it runs beside the SDK, from one file."""
