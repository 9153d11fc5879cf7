"""The vendor's benchmark tool ``mm_run``, emulated: it runs model files of the emulated SDK, and its times are those of this CPU.

Options and output are those of docs/magicmind-api.md ("api"), sections 4.3 and 4.4; the headers of its output say that it is
emulated. ``clipmlu.magicmind.mm_run`` calls the vendor's own tool, and reads its output.
"""
