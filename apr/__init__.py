from apr.processors import settle_waiting

settle_waiting()  # here, since torch reads it when it is imported, and whatever imports torch for APR imports this first
