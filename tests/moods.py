"""Services on bad days: a server on 127.0.0.1 that answers as it is told to, and has its moods.

    with serving(lambda h: h.say(200, dict(path=h.route, query=h.query))) as server:
        server.moods += [says(429, Retry_After='0'), None, breaks_off]   # acted out in turn before an answer; None: no mood
        ...                                                              # ask `server.url`

An answer and a mood are functions of the handler: `h.route` (the path, still quoted), `h.query` (first value of each parameter), `h.headers` (of the request)
and `h.say`. A mood that returns something true has answered; else the answer follows.
"""
import json
import socket
import struct
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class MoodyServer(ThreadingHTTPServer):
    "Answers with `answer`; before that it acts out the next of its moods, or `mood` when none is left."
    daemon_threads = True
    def __init__(self, answer=None):
        super().__init__(('127.0.0.1',0), Handler)
        if answer: self.answer = answer
        self.moods,self.mood,self.headers = deque(),None,{}       # headers: of each answer
        self.seen,self.asked,self.agents,self.times = [],[],[],[]                # of each request: what `note` says, its headers, its User-Agent, when
    @property
    def url(self)->str: return f'http://127.0.0.1:{self.server_address[1]}'
    def note(self, h): return h.path
    def handle_error(self, request, address): pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True   # header and body are two writes; else each answer waits for an acknowledgement
    cut = None   # bytes of the body after which the connection ends
    def log_message(self, *args): pass

    def do_GET(self):
        s,self.cut = self.server,None
        at = urlsplit(self.path)
        self.route,self.query = at.path,{k:v[0] for k,v in parse_qs(at.query, keep_blank_values=True).items()}
        s.times.append(time.monotonic())
        s.agents.append(self.headers['User-Agent'])
        s.asked.append(dict(self.headers))
        s.seen.append(s.note(self))
        mood = s.moods.popleft() if s.moods else s.mood
        if not (mood and mood(self)): s.answer(self)

    do_HEAD = do_GET

    def say(self, code:int, body='', kind:str|None='application/json', length:int|None=None, **headers):
        "Answer; text and bytes go as they are, anything else as JSON. `Retry_After='1'` is the header Retry-After."
        data = body if isinstance(body,bytes) else (body if isinstance(body,str) else json.dumps(body)).encode()
        self.send_response(code)
        size = {} if code in (204,304) else {'Content-Length':str(len(data) if length is None else length)}
        for k,v in dict(self.server.headers, **({'Content-Type':kind} if kind else {}), **size, **headers).items(): self.send_header(k.replace('_','-'), v)
        self.end_headers()
        if self.command!='HEAD' and code not in (204,304): self.wfile.write(data if self.cut is None else data[:self.cut])
        if self.cut is not None and self.cut<len(data): reset(self)
        return True


def reset(h):
    "End the connection without a word."
    h.wfile.flush()
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii',1,0))
    h.close_connection = True
    h.connection.close()
    return True


def says(code:int, body='', **kw): return lambda h: h.say(code, body, **kw)


def resets(h): return reset(h)


def breaks_off(h):
    "A body shorter than it should be; the connection ends in good order."
    h.say(200, '{"status":"ok","message":{"items":[{"DOI":"10.10', length=5000)
    h.close_connection = True
    return True


def cuts(n:int):
    "The true answer, reset after n bytes of its body."
    def mood(h): h.cut = n
    return mood


def waits(seconds:float): return lambda h: time.sleep(seconds)


def sleeps(h): time.sleep(1.5)


def drips(head:bool):
    "One byte each tenth of a second, without end, of the head or of the body."
    def mood(h):
        start = b'HTTP/1.1 200 OK\r\n' if head else b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"a":"'
        with suppress(OSError):
            h.wfile.write(start)
            for _ in range(300):
                time.sleep(0.1)
                h.wfile.write(b'X')
        h.close_connection = True
        return True
    return mood


@contextmanager
def serving(answer=None, server:MoodyServer|None=None):
    "A server at work; its address is `url`."
    server = server or MoodyServer(answer)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
