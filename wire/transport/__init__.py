"""How bytes get from one party to another: the seam in ``base``, MQTT in ``mqtt``, and a broker in memory in ``memory``."""
