"""The workbench's WebSocket client, against a peer that speaks the protocol frame by frame."""

import socket
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

import wb_http
from wb_common import Failure


def frame(opcode, payload, final=True):
    """A server's frame, unmasked."""
    if len(payload) < 126:
        size = bytes([len(payload)])
    elif len(payload) < 65536:
        size = b"\x7e" + len(payload).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(payload).to_bytes(8, "big")
    return bytes([0x80 * final | opcode]) + size + payload


def test_websocket_messages_pings_fragments_and_pauses():
    heard = []

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(4096).decode()
            key = request.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0].encode()
            digest = wb_http.hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            accept = wb_http.base64.b64encode(digest).decode()
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
            connection.sendall(frame(1, b"one") + frame(2, b"\x00binary"))
            connection.sendall(frame(1, b"tw", final=False) + frame(9, b"are you there") + frame(0, "o\u00e9".encode()))
            long = frame(1, b"x" * 70_000)
            connection.sendall(long[:1000])
            time.sleep(0.6)  # longer than the client's poll: the half-received frame must survive it
            connection.sendall(long[1000:] + frame(1, b"y" * 300) + frame(8, b""))
            heard.append(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with wb_http.WebSocket("127.0.0.1", listener.getsockname()[1], "/ws") as client:
            messages = list(client.messages(poll=0.2))
        thread.join()
    assert None in messages
    assert [m for m in messages if m is not None] == ["one", "two\u00e9", "x" * 70_000, "y" * 300]
    opcode, length, mask = heard[0][0], heard[0][1], heard[0][2:6]
    assert opcode == 0x8A and length == 0x80 | len(b"are you there")
    assert bytes(b ^ mask[i % 4] for i, b in enumerate(heard[0][6:19])) == b"are you there"


def test_a_port_that_speaks_no_websocket_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Failure, match="did not open a WebSocket: HTTP/1.1 404"):
            wb_http.WebSocket("127.0.0.1", listener.getsockname()[1], "/ws")
        thread.join()
