// The pages can be read without this script. It checks study files as they are typed, submits and changes studies, and
// follows running ones.
(function () {
  "use strict";

  document.documentElement.classList.add("script"); // shows what needs it

  function later(action, pauseMs) {
    var timer;
    return function () { clearTimeout(timer); timer = setTimeout(action, pauseMs); };
  }

  // Once for all calls within a time, also if they never pause.
  function soon(action, pauseMs) {
    var timer = null;
    return function () {
      if (timer === null) timer = setTimeout(function () { timer = null; action(); }, pauseMs);
    };
  }

  function post(path, body) {
    var headers = {"Content-Type": "application/yaml", "X-CSRF-Token": document.body.dataset.csrf};
    return fetch(path, {method: "POST", headers: headers, body: body}).then(function (response) {
      return response.json().then(function (found) { return {ok: response.ok, found: found}; });
    });
  }

  // --- a study file ---

  var text = document.getElementById("study-text");
  if (text) {
    var answer = document.getElementById("study-answer"), box = document.getElementById("submit");
    var file = document.getElementById("study-file"), submit = document.getElementById("study-submit");
    var name = "study.yaml", asked = 0;

    function show(message, kind) { answer.textContent = message; answer.className = kind; }

    function failed() { show("The service does not answer. Try again.", "bad"); }

    function check() {
      var number = ++asked;
      if (submit) submit.disabled = true;
      if (!text.value.trim()) { show("", ""); return; }
      post("/v1/validate?file=" + encodeURIComponent(name), text.value).then(function (answer) {
        if (number !== asked) return;
        if (!answer.ok) { show(answer.found.detail, "bad"); return; }
        var found = answer.found;
        var lines = ["Study " + found.study + " is valid: " + found.stages.join(" → ")].concat(found.remarks);
        show(lines.join("\n"), "good");
        if (submit) submit.disabled = false;
      }).catch(function () { if (number === asked) failed(); });
    }

    function send(event) {
      event.preventDefault();
      if (!submit || submit.disabled) return;
      submit.disabled = true;
      var shared = document.getElementById("study-shared").checked;
      post("/v1/studies?file=" + encodeURIComponent(name) + "&shared=" + shared, text.value).then(function (answer) {
        if (answer.ok) { location.href = "/studies/" + encodeURIComponent(answer.found.study); return; }
        show(answer.found.detail, "bad");
      }).catch(failed);
    }

    function read(chosen) {
      if (!chosen) return;
      name = chosen.name;
      chosen.text().then(function (content) { text.value = content; check(); });
    }

    text.addEventListener("input", later(check, 400));
    file.addEventListener("change", function () { read(file.files[0]); });
    ["dragover", "dragleave", "drop"].forEach(function (kind) {
      box.addEventListener(kind, function (event) {
        event.preventDefault();
        box.classList.toggle("over", kind === "dragover");
        if (kind === "drop") read(event.dataTransfer.files[0]);
      });
    });
    document.getElementById("study-form").addEventListener("submit", send);
    if (text.value) check();
  }

  // --- a study ---

  var study = document.body.dataset.study;

  document.addEventListener("click", function (event) {
    var what = event.target.dataset && event.target.dataset.do;
    if (!what || (event.target.dataset.ask && !confirm(event.target.dataset.ask))) return;
    event.target.disabled = true;
    post("/v1/studies/" + encodeURIComponent(study) + "/" + what).then(function (answer) {
      if (answer.ok) { location.reload(); return; }
      var place = document.getElementById("action-answer");
      place.textContent = answer.found.detail;
      place.className = "bad";
    });
  });

  if (study && document.body.dataset.live && window.EventSource) {
    var path = "/studies/" + encodeURIComponent(study);

    // The server renders the page; an event only says that there is something new.
    var refresh = soon(function () {
      fetch(path).then(function (response) {
        if (response.status === 401 || response.status === 404) location.reload(); // it asks to log in, or says why
        return response.ok ? response.text() : null;
      }).then(function (page) {
        if (!page) return;
        var fresh = new DOMParser().parseFromString(page, "text/html").querySelector("main");
        document.querySelector("main").replaceWith(fresh);
      }).catch(function () {}); // the service is away; the next event tries again
    }, 1000);

    (function follow() {
      var events = new EventSource("/v1" + path + "/events");

      ["study", "stage", "trial", "report"].forEach(function (kind) {
        events.addEventListener(kind, refresh);
      });
      events.addEventListener("end", function () { events.close(); refresh(); });
      events.addEventListener("error", function () {
        // Browsers try again after a lost connection, but not after an answer such as 503, while the database is away.
        if (events.readyState !== EventSource.CLOSED) return;
        refresh();
        setTimeout(follow, 5000);
      });
    })();
  }
})();
