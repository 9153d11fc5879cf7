"""The least of a stand-in for the SDK that runs on Python 3.7, where the emulator does not: doubles its only input."""
