"""Deterministic simulation: trainers, uploaders and a store on one clock, one seed deciding what happens.

``python -m tests.simulation --seed 7 --trace`` plays one story again, exactly. The code that runs is the real
one: a trainer's start and its local write, and the uploader. What is simulated is around it: the clock
(``virtual_time``), processes that die at any point (``process``), a disk that forgets what was not made
durable (``disk``), a network that delays, loses and repeats (``network``). ``judge`` looks after each event.

Blocks have 64 bytes here instead of 8 MiB, so that a file of some hundred bytes has parts. Threads stay
outside: the local write is a generator of file operations, and what runs in threads elsewhere runs inline.
"""
