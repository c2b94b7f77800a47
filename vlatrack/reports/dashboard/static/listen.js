"use strict";
/* The stream of changes of the server, and what the header says of it. */

VT.SILENT_MS = 40_000; /* the server says something every 15 seconds */

/* Calls `listener` with what changes at the server, and `restarted` when another server answers than before, for which
   what is known so far may not be true. After a lost connection, or a night with the lid closed, it goes on where it was. */
VT.listen = (address, mark, listener, restarted) => {
  const light = document.getElementById("connection");
  let source = null, heard = Date.now(), life = mark?.split("-")[0] ?? null;

  const say = (text, kind) => {
    if (light.textContent !== text) light.textContent = text;
    light.className = kind;
  };
  const lost = () => say(`no connection since ${new Date(heard).toLocaleTimeString()}, trying again`, "lost");

  function open() {
    source?.close();
    const after = mark ? `after=${encodeURIComponent(mark)}` : "";
    source = new EventSource(`${address}${address.includes("?") ? "&" : "?"}${after}`);
    source.onopen = () => { heard = Date.now(); say("live", "live"); };
    source.onerror = lost;
    source.addEventListener("alive", () => { heard = Date.now(); });
    source.onmessage = (message) => {
      heard = Date.now();
      mark = message.lastEventId;
      const change = JSON.parse(message.data), isOther = life !== null && change.life !== life;
      life = change.life;
      if (isOther) restarted(); else listener(change);
    };
  }

  /* A browser allows six connections to a server: tabs that nobody sees give theirs back. */
  document.addEventListener("visibilitychange", () => { if (document.hidden) source?.close(); else open(); });
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
  setInterval(() => {
    if (document.hidden) return;
    const isSilent = Date.now() - heard > VT.SILENT_MS;
    if (isSilent) lost();
    if (isSilent || source?.readyState === EventSource.CLOSED) open();
  }, 5000);
  if (!document.hidden) open();
};
