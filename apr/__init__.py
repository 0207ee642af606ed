from apr.processors import settle_waiting

__version__ = "0.1.0"

settle_waiting()  # here, since torch reads it when it is imported, and whatever imports torch for APR imports this first
