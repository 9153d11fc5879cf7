"""Stage 3: a compiled bundle in use, from single images to bulk jobs."""
