"""Tells Airflow of the page *Promotions*: an app of its own, and the entry in the navigation that shows it.

Every process of Airflow imports this; what the page needs is imported when somebody opens it.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from evensong_airflow import PAGE_PREFIX


class WhenOpened:
    """An ASGI app that is made by its first request, in a thread: Airflow answers others meanwhile."""

    def __init__(self) -> None:
        self._app: Any = None
        self._making = threading.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        app = self._app or await asyncio.to_thread(self._make)
        await app(scope, receive, send)

    def _make(self) -> Any:
        with self._making:
            if self._app is None:
                from evensong_promotions.app import create_app

                self._app = create_app()
        return self._app


class EvensongPlugin(AirflowPlugin):
    """The champion, its history, what waits for a person; approve, reject, roll back."""

    name = "evensong"
    fastapi_apps = [{"app": WhenOpened(), "url_prefix": PAGE_PREFIX, "name": "Evensong promotions"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Promotions",
            "href": f"{PAGE_PREFIX}/",
            "destination": "nav",
            "url_route": "promotions",
            "icon": f"{PAGE_PREFIX}/icon.svg",
            "icon_dark_mode": f"{PAGE_PREFIX}/icon-dark.svg",
        }
    ]
