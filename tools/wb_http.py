"""Talking to a ComfyUI server: JSON over HTTP, and its WebSocket (RFC 6455, the client's side, text only)."""

import base64
import hashlib
import json
import os
import socket
import struct
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from wb_common import Failure, last_lines

# Loopback is never behind a proxy, whatever the environment says.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


class Server:
    """A running server: its address, its process and its log."""

    def __init__(self, address: str, port: int, process: subprocess.Popen, log: Path):
        self.address, self.port, self.process, self.log = address, port, process, log
        self.url = f"http://{address}:{port}"

    def check_alive(self) -> None:
        """Failure, with the end of its log, if the server has ended."""
        if (status := self.process.poll()) is not None:
            raise Failure(
                f"the server ended by itself (exit status {status}); full log: {self.log}\n{last_lines(self.log)}"
            )

    def get(self, path: str, **query: str) -> bytes:
        """The body of a GET request."""
        question = "?" + urllib.parse.urlencode(query) if query else ""
        with _direct.open(f"{self.url}{path}{question}", timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str, **query: str):
        """The parsed body of a GET request."""
        return json.loads(self.get(path, **query))

    def queue(self, prompt: dict, client_id: str) -> str:
        """Queue an API-format graph; returns its prompt id. Failure names every node the host refuses."""
        body = json.dumps({"prompt": prompt, "client_id": client_id}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with _direct.open(request, timeout=60) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise Failure("the server refuses the workflow: " + _refusal(error.read())) from error
        if answer["node_errors"]:  # the host runs what is left of the graph, which is not what was asked for
            raise Failure("the server refuses part of the workflow: " + _refusal(json.dumps(answer).encode()))
        return answer["prompt_id"]

    def events(self, client_id: str) -> "WebSocket":
        """A WebSocket that receives this client's events."""
        return WebSocket(self.address, self.port, f"/ws?clientId={client_id}")


def _refusal(body: bytes) -> str:
    """The host's validation errors in one line."""
    try:
        answer = json.loads(body)
        problems = [
            f"{node.get('class_type')} (node {number}): {problem['message']}: {problem['details']}"
            for number, node in (answer.get("node_errors") or {}).items()
            for problem in node["errors"]
        ]
        return "; ".join(problems) or answer["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:300].decode(errors="replace")


class WebSocket:
    """A client connection that yields text messages and skips binary ones."""

    def __init__(self, address: str, port: int, path: str, timeout: float = 30):
        self._socket = socket.create_connection((address, port), timeout=timeout)
        self._buffer = b""
        try:
            self._handshake(f"{address}:{port}", path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and close the connection."""
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass  # the other side is gone already, which is what we want
        self._socket.close()

    def messages(self, poll: float) -> Iterator[str | None]:
        """Yield each text message, and None whenever none arrived within `poll` seconds; ends when the peer closes."""
        self._socket.settimeout(poll)
        parts, kind = [], None
        while True:
            try:
                final, opcode, payload = self._frame()
            except TimeoutError:
                yield None
                continue
            except ConnectionError:
                return
            if opcode == CLOSE:
                return
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode < CLOSE:  # a message, or the continuation (opcode 0) of one
                kind = opcode or kind
                parts.append(payload)
                if final:
                    message, parts = b"".join(parts), []
                    if kind == TEXT:
                        yield message.decode()

    def _handshake(self, host: str, path: str) -> None:
        key = base64.b64encode(os.urandom(16))
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        accept = base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest())
        if not head.startswith(b"HTTP/1.1 101") or accept not in head:
            raise Failure(f"{host} did not open a WebSocket: {head.splitlines()[0].decode(errors='replace')}")

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._buffer += data

    def _frame(self) -> tuple[bool, int, bytes]:
        """One frame: (final, opcode, payload). A timeout leaves what has arrived in the buffer for the next call."""
        header = self._peek(2)
        length, start = header[1] & 0x7F, 2
        if length == 126:
            length, start = struct.unpack(">H", self._peek(4)[2:4])[0], 4
        elif length == 127:
            length, start = struct.unpack(">Q", self._peek(10)[2:10])[0], 10
        payload = self._peek(start + length)[start : start + length]
        self._buffer = self._buffer[start + length :]
        return bool(header[0] & 0x80), header[0] & 0x0F, payload

    def _peek(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        return self._buffer

    def _send(self, opcode: int, payload: bytes) -> None:
        """One frame, masked as the standard demands of clients. Control frames only, so at most 125 bytes."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
