"""The trainer: sampling order, schedule, optimizer groups, engine, loop."""
