"""A web of bad manners on the loopback: what a crawler meets, under addresses of one's own."""

import asyncio
import gzip
import io
import ssl
import threading
from collections import Counter
from functools import cache

import numpy as np
from aiohttp import web
from PIL import Image

LOOPBACK = ("127.0.0.0/8",)


def jpeg(number: int, side: int = 64) -> bytes:
    """A small textured JPEG, another one for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(file, "JPEG", quality=80)
    return file.getvalue()


@cache
def bomb() -> bytes:
    """128 MiB of zeros in some 600 kB."""
    return gzip.compress(bytes(128 << 20), 1)


class Web:
    """Serves on all of 127.0.0.0/8 until closed, over https with ``tls``; ``asked`` counts requests by path."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.released = threading.Event()  # what is held is answered
        self.asked: Counter[str] = Counter()
        self.busiest: Counter[str] = Counter()  # most requests at once, by host
        self._now: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            app = web.Application()
            app.router.add_get("/{path:.*}", self._count)
            self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await self._runner.setup()
            await web.TCPSite(self._runner, "0.0.0.0", 0, backlog=1024, ssl_context=self._tls).start()
            self.port = self._runner.addresses[0][1]

        self._loop.run_until_complete(start())
        ready.set()
        self._loop.run_forever()

    async def _count(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        self._now[request.host] += 1
        self.busiest[request.host] = max(self.busiest[request.host], self._now[request.host])
        try:
            return await self._answer(request)
        except ConnectionError:  # the other side has heard enough
            raise asyncio.CancelledError from None
        finally:
            self._now[request.host] -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind, _, argument = request.match_info["path"].partition("/")
        match kind:
            case "jpeg":
                return web.Response(body=jpeg(int(argument)), content_type="image/jpeg")
            case "slowly":  # a fifth of a second later, longer for lower numbers
                await asyncio.sleep(0.2 / (1 + int(argument)))
                return web.Response(body=jpeg(int(argument)))
            case "held":
                while not self.released.is_set():
                    await asyncio.sleep(0.01)
                return web.Response(body=jpeg(int(argument)))
            case "html":
                return web.Response(text="<html>nothing to see</html>", content_type="image/jpeg")
            case "status":
                return web.Response(status=int(argument))
            case "flaky":  # fails as often as told, then works
                if self.asked[request.path] <= int(argument):
                    return web.Response(status=503, headers={"Retry-After": "0"})
                return web.Response(body=jpeg(0))
            case "later":
                return web.Response(status=429, headers={"Retry-After": argument})
            case "tag":
                return web.Response(body=jpeg(1), headers={"X-Robots-Tag": request.query["value"]})
            case "tdm":
                return web.Response(body=jpeg(1), headers={"TDM-Reservation": "1"})
            case "to":
                return web.Response(status=302, headers={"Location": request.query["url"]})
            case "circle":
                return web.Response(status=307, headers={"Location": request.path})
            case "silent":
                await asyncio.sleep(30)
                return web.Response()
            case "agent":
                return web.Response(text=request.headers["User-Agent"])
            case "packed":
                return web.Response(body=gzip.compress(jpeg(2)), headers={"Content-Encoding": "gzip"})
            case "unknown":
                return web.Response(body=b"x" * 20, headers={"Content-Encoding": "br"})
            case "bomb":
                return web.Response(body=bomb(), headers={"Content-Encoding": "gzip"})
            case "claims":  # 10 GB, it says
                response = web.StreamResponse(headers={"Content-Length": str(10**10)})
                await response.prepare(request)
                await response.write(bytes(1000))
                return response
            case "endless" | "drip":
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(bytes(1 << 18 if kind == "endless" else 10))
                    await asyncio.sleep(0 if kind == "endless" else 0.05)
            case "broken":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(bytes(500))
                assert request.transport is not None
                request.transport.abort()
                return response
        return web.Response(status=404)
