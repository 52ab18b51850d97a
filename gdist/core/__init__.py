"""The pure core: values in, values out; standard library only, no I/O, clock, thread, environment or log."""
