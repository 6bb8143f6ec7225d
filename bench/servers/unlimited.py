"""catraca without its limit on the calls in flight on a connection, to see what the limit is good for."""

import sys

from catraca_server import app, cli

app.STREAMS_PER_CONNECTION = 2**31 - 1

if __name__ == "__main__":
    sys.exit(cli.main("serve", sys.argv[1:]))
