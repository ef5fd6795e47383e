"""A WebSocket server for tests, as somebody may write one: it listens on ``PORT`` and answers each text with its own name before it."""

import os

from websockets.sync.server import ServerConnection, serve


def answer(connection: ServerConnection) -> None:
    """Until the client goes away."""
    for text in connection:
        connection.send(f"{os.environ['NAME']}: {text!s}")


with serve(answer, "127.0.0.1", int(os.environ["PORT"])) as server:
    server.serve_forever()
