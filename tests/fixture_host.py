"""A server on loopback that misbehaves in every way."""
import contextlib
import http.server
import threading
import time


class Host:

    """Serves `files`; `plans` says how each request of one is answered."""

    def __init__(self):
        self.files, self.plans, self.requests = {}, {}, []
        self.patience = 2  # seconds that 'hang' takes
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.0'

            def do_GET(self):
                with contextlib.suppress(ConnectionError):  # it has left
                    host.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True,
                         args=[0.01]).start()  # `stop` waits so many seconds

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        name = request.path.strip('/')
        asked = request.headers.get('Range')
        self.requests.append((name, asked))
        plan = self.plans.get(name, [])
        how = plan.pop(0) if len(plan) > 1 else (plan or ['whole'])[0]
        data = self.files.get(name)
        if how == 'hang':
            time.sleep(self.patience)
            return
        if how == 'chunked':
            self.head(request, 200, Transfer_Encoding='chunked')
            request.wfile.write(b'3e8\r\n' + data[:1000] + b'\r\n')
        elif how == 'redirect':
            self.head(request, 302, Location=f'/{name}_moved')
        elif data is None or how.isdigit():
            self.head(request, int(how) if how.isdigit() else 404)
        else:
            self.send(request, data, how, asked)

    def send(self, request, data, how, asked):
        start = int(asked[6:-1]) if asked and how != 'no range' else 0
        if start and start >= len(data):
            self.head(request, 416, Content_Range=f'bytes */{len(data)}')
            return
        sent = data[start:]
        headers = {'Content_Length': len(sent)}
        if start:
            headers['Content_Range'] = (
                f'bytes {start}-{len(data) - 1}/{len(data)}')
        if how == 'wrong length':
            headers['Content_Length'] = len(sent) + 1000
        elif how == 'too long':
            sent += b'more'
        elif how == 'endless':
            headers, sent = {}, sent * 20
        elif how == 'corrupt':
            sent = bytes(len(sent))
        elif how == 'total unknown' and start:
            headers['Content_Range'] = f'bytes {start}-{len(data) - 1}/*'
            sent = sent[:len(sent) // 2]
        elif how == 'other part':
            headers['Content_Range'] = f'bytes 7-{len(data) - 1}/{len(data)}'
        self.head(request, 206 if start else 200, **headers)
        if how == 'cut':
            sent = sent[:len(sent) // 2]
        for i in range(0, len(sent), 10_000):
            request.wfile.write(sent[i:i + 10_000])
            if how == 'slow':
                request.wfile.flush()
                time.sleep(0.05)

    def head(self, request, status, **headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace('_', '-'), str(value))
        request.end_headers()
