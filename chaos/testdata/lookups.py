# Looks NAME up by getaddrinfo() again and again, PAUSE seconds between two,
# until it is told to end, and prints a line for each: when it began (Unix
# time), how long it took in seconds, and the addresses or the error.
# Usage: lookups.py NAME PAUSE
import signal
import socket
import sys
import time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
name, pause = sys.argv[1], float(sys.argv[2])
while True:
    wall, began = time.time(), time.monotonic()
    try:
        found = sorted({info[4][0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
        said = "ok " + " ".join(found)
    except OSError as error:
        said = "failed " + str(error)
    print("%.6f %.6f %s" % (wall, time.monotonic() - began, said), flush=True)
    time.sleep(pause)
