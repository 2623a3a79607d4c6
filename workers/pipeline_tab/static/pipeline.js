// Replace the parts of a page that have changed, as the server tells them; a part keeps the keyboard's focus.
(function () {
  "use strict";
  var page = document.getElementById("pl-page");
  if (!page) { return; }
  var fresh = document.getElementById("pl-fresh");

  function put(id, html) {
    var part = document.getElementById(id);
    if (!part || part.innerHTML === html) { return; }
    var held = document.activeElement;
    var within = held && part.contains(held) && held.id;
    part.innerHTML = html;
    if (within && document.getElementById(within)) { document.getElementById(within).focus(); }
  }

  document.addEventListener("click", function (event) {
    var code = event.target.closest ? event.target.closest("code.pl-fix") : null;
    if (code && navigator.clipboard) { navigator.clipboard.writeText(code.textContent); }
  });
  if (page.dataset.live !== "yes") { return; }

  var path = window.location.pathname.replace(/\/$/, "") + "/live";
  var source = null;

  function listen() {
    source = new EventSource(path);
    source.onmessage = function (event) {
      var parts = JSON.parse(event.data);
      Object.keys(parts).forEach(function (id) { put(id, parts[id]); });
      document.body.setAttribute("data-pl-told", String(Date.now()));
    };
    source.onerror = function () {
      fresh.innerHTML = '<span class="status-dot status-dot-error" aria-hidden="true"></span> Flower does not answer';
    };
  }

  // A browser has six connections for one server: tabs that nobody sees must not hold them all.
  function follow() {
    var seen = document.visibilityState === "visible";
    if (seen && !source) { listen(); }
    if (!seen && source) { source.close(); source = null; }
  }

  document.addEventListener("visibilitychange", follow);
  follow();
}());
