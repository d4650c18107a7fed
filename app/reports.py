"""The HTML report of a run, opened in the browser and kept in a sandbox: it may show pictures and nothing else."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app import text
from app.jobs import Queue
from lrdiff.errors import RunError

SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report_route(queue: Queue) -> Route:
    """Return the route `/report/NAME`."""

    def report(request: Request) -> Response:
        try:
            path = queue.find(request.path_params["name"]).path / "report.html"
        except RunError as error:
            return PlainTextResponse(str(error), status_code=404)
        # A link that leads out of the runs is not followed.
        if not path.is_file() or not path.resolve().is_relative_to(queue.root):
            return PlainTextResponse(text.NO_REPORT, status_code=404)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": SANDBOX})

    return Route("/report/{name:path}", report, methods=["GET"])


def report_url(name: str) -> str:
    """Return where a run's report is, below the page's own address."""
    return f"report/{name}"
