"""MLflow's server with pages that open on a study's trials: `mlflow server --app-name vitsearch`.

MLflow decides in the browser which columns, order and filter a page has: by the address, otherwise by what the browser
remembers of the experiment, otherwise by start time and without any column. An experiment can only offer views, which a
person must choose. This app therefore adds a script to the page that lets a browser which does not remember an
experiment yet begin with the experiment's view. What a person changes afterwards is kept as usual.
"""

import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from orchestrator.tracking.pages import ALL_VIEW, DIFFERENCES, TRIALS_VIEW, VIEW_TAG, state_of_saved_view

_MAX_EXPERIMENTS = 1000
_OF_CACHES = (b"if-none-match", b"if-modified-since")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_SCRIPT = """
(function (views, differences) {
  "use strict";
  var store;
  try { store = window.localStorage; } catch (refused) { return; }

  // MLflow is asked for training runs, not for language models, and its assistant stays closed until it is opened.
  [["mlflow.workflowType_v1", "machine_learning"], ["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", true]].forEach(
    function (pair) { if (store.getItem(pair[0]) === null) store.setItem(pair[0], JSON.stringify(pair[1])); });

  // A page opens on our view, unless the browser remembers something else of it than an earlier view of ours.
  function chosen(state) {
    return JSON.stringify([state.selectedColumns, state.searchFilter, state.orderByKey, String(state.orderByAsc)]);
  }
  function begin(id, view) {
    var key = 'MLflowLocalStorage-1.1-ExperimentPage-["' + id + '"]-ReactComponentState', ours = "vitsearch.view-" + id;
    var state = JSON.parse(store.getItem(key) || "null");
    if (state && Object.keys(state).length && chosen(state) !== store.getItem(ours)) return;
    store.setItem(key, JSON.stringify(Object.assign(state || {}, view)));
    store.setItem(ours, chosen(view));
  }
  Object.keys(views).forEach(function (id) {
    try { begin(id, views[id]); } catch (error) { console.warn("vitsearch: experiment " + id + " has no view", error); }
  });

  // The page that compares runs has no address for its switch "Show diff only" of the parameters.
  function showDifferences() {
    if (location.hash.indexOf("#/compare-runs") !== 0 || location.hash.indexOf(differences) < 0) return;
    var tries = 0, timer = setInterval(function () {
      var found = document.querySelector('[role="switch"][aria-label^="Parameters"]');
      if (found && found.getAttribute("aria-checked") !== "true") found.click();
      if (found) found.scrollIntoView({block: "center"});
      if (found || ++tries > 300) clearInterval(timer);
    }, 100);
  }
  window.addEventListener("hashchange", showDifferences);
  showDifferences();
})"""


def make_app() -> App:
    """MLflow's ASGI app with the script in its page; called by uvicorn in the server's process."""
    from mlflow import MlflowClient
    from mlflow.server import BACKEND_STORE_URI_ENV_VAR
    from mlflow.server.fastapi_app import app

    client = MlflowClient(os.environ[BACKEND_STORE_URI_ENV_VAR])

    def first_views() -> dict[str, dict[str, Any]]:
        experiments = client.search_experiments(
            filter_string="tags.`vitsearch.study` != ''", max_results=_MAX_EXPERIMENTS
        )
        views = {one.experiment_id: first_view(one.tags) for one in experiments}
        return {experiment_id: view for experiment_id, view in views.items() if view is not None}

    return FirstViews(app, first_views)


def first_view(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The state in which an experiment's page opens: its trials, otherwise all runs; `None` if it has no such view."""
    found = (state_of_saved_view(tags.get(f"{VIEW_TAG}{name}", "")) for name in (TRIALS_VIEW, ALL_VIEW))
    return next((state for state in found if state), None)


def script_element(views: Mapping[str, Mapping[str, Any]]) -> str:
    """The script as an HTML element, with the first views by MLflow's id of their experiment."""
    data = json.dumps([views, DIFFERENCES]).replace("<", "\\u003c")  # a name must not end the element
    return f"<script>{_SCRIPT}.apply(null, {data});</script>"


class FirstViews:
    """Adds the script to MLflow's page, and passes all other requests on.

    Args:
        app: MLflow's app.
        first_views: Reads the first view of each experiment, by MLflow's id.
    """

    def __init__(self, app: App, first_views: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._app = app
        self._first_views = first_views

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        import anyio.to_thread

        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_CACHES]
        start: Message = {}
        body = b""

        async def keep(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")

        await self._app({**scope, "headers": headers}, receive, keep)
        if start["status"] == 200 and b"<head>" in body:
            views = await anyio.to_thread.run_sync(self._first_views)
            body = body.replace(b"<head>", b"<head>" + script_element(views).encode(), 1)
        changed = {b"content-length": str(len(body)).encode(), b"cache-control": b"no-store"}
        kept = [(name, value) for name, value in start["headers"] if name not in {*changed, b"etag", b"last-modified"}]
        await send({**start, "headers": [*kept, *changed.items()]})
        await send({"type": "http.response.body", "body": body})
