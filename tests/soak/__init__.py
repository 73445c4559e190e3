"""Training for as long as one likes, while everything it stands on is killed again and again.

``make soak MINUTES=10``, or ``python -m tests.soak --minutes 10 --seed 7``. The processes and the S3 server
are real; between them a gate loses requests and answers. In the end nothing dies any more, the trainer is
told to stop, and every byte it left behind is read again.
"""
