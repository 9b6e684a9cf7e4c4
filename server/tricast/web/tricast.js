// The page at "/": one topic, followed over three transports side by side.
//
// Each pane is one loop (`follow`) around one connection at a time: connect, read until it ends, wait, connect again
// from the last id. A transport is an async function that returns or throws when its connection has ended, and hands
// what it reads to its Reader. The Readers write into one Ledger, and the Ledger is the check: an id that one pane has
// received and another has passed by is a missed event.
//
// What a proxy in front does to a connection is not told to a page; it has to be found out. `finding` puts into words
// what follows from the times at which each pane heard something, and from what the other panes got meanwhile.

const ROWS = 200; // list entries kept in each pane
const COLUMNS = 120; // events shown in the delivery record; as many as fit on a wide screen
const LEDGER = 5000; // ids the three panes are compared over; beyond it memory would grow with the events
const SAMPLES = 64; // latencies the median is taken of
const DATA_SHOWN = 400; // characters of an event's data in the list
const CUT_MS = 4000; // long enough to publish meanwhile, short enough to wait for
const RESTARTING = 1012; // the close code, as IANA has it registered
const BACKOFF_MS = { first: 500, most: 15000 };
const START_TIMEOUT_MS = 3000;
const TICK_MS = 500; // how often the page looks at the clock again where nothing happens
const HELD_MS = 3000; // later than in all other panes: an event that is held back, not one that is on its way
const QUIET_MS = 3000; // from when on the time without an event is shown
const SILENCE_MS = 1500; // a connection that breaks after less was not cut for its silence
const GOODBYE_MS = 15000; // for so long after a goodbye over one connection, the others may end for the same reason
const FIRST_MS = 1e12; // no event is older than this, in milliseconds since 1970
const OUTLIVED = 1.3; // a silence so much longer than the one that ended in a cut shows that it need not

const topic = new URLSearchParams(location.search).get("topic")?.trim() || "demo";
const byId = (id) => document.getElementById(id);
const utf8Size = (text) => new TextEncoder().encode(text).length;

// ---------------------------------------------------------------------------------------------------------------- ids

/** The ids in each shard of an id: `<ms>-<counter>`, or `<shard>.<ms>-<counter>` and others behind `_`. */
function shardsOf(id) {
  return new Map(id.split("_").map((part) => (part.includes(".") ? part.split(".") : ["", part])));
}

/** Orders two ids, where they tell of several shards by those of which both do; "0-0" is before all of them. */
function compareIds(a, b) {
  if (a === b) return 0;
  const theirs = shardsOf(b);
  for (const [shard, id] of shardsOf(a)) {
    const order = theirs.has(shard) ? comparePlainIds(id, theirs.get(shard)) : 0;
    if (order) return order;
  }
  if (a === "0-0") return -1;
  return Number(b === "0-0");
}

/** Orders two ids `<ms>-<counter>`. Both parts may exceed what a Number holds, so they are compared as text. */
function comparePlainIds(a, b) {
  const [aMs, aCounter] = a.split("-");
  const [bMs, bCounter] = b.split("-");
  return compareDigits(aMs, bMs) || compareDigits(aCounter, bCounter);
}

function compareDigits(a, b) {
  if (a.length !== b.length) return a.length - b.length;
  return a < b ? -1 : Number(a > b);
}

/** The same hue for the same id in every pane; multiples of the golden angle keep neighbours apart. */
function hueOf(id) {
  const numbers = id.match(/\d+/g).map(Number);
  return Math.round((numbers.reduce((sum, number) => sum + (number % 100000), 0) * 137.508) % 360);
}

// ------------------------------------------------------------------------------------------------------------- ledger

/** All ids the page knows of, in order, and what became of each in every pane. */
class Ledger {
  constructor() {
    this.readers = [];
    this.goodbyeAt = -Infinity; // when the server last said, over any connection, that it goes down
    this.columns = []; // in id order
    this.byId = new Map();
  }

  /** The index of the first column after `id`. */
  indexAfter(id) {
    let low = 0;
    let high = this.columns.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (compareIds(this.columns[middle].id, id) <= 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The column of an id, made when it is new; null when the id is older than all that is kept. */
  column(id) {
    const known = this.byId.get(id);
    if (known) return known;
    const index = this.indexAfter(id);
    if (index === 0 && this.columns.length >= LEDGER) return null;
    const cells = this.readers.map((reader) => reader.cellFor(id));
    const column = { id, cells, arrivals: [], knownAt: performance.now(), sentAt: null };
    this.columns.splice(index, 0, column);
    this.byId.set(id, column);
    if (this.columns.length > LEDGER) this.byId.delete(this.columns.shift().id);
    this.readers.forEach((reader, row) => {
      if (column.cells[row] === "missed") reader.counts.missed += 1;
    });
    return column;
  }

  /** What is known after one position and up to another. */
  *between(after, to) {
    for (let index = this.indexAfter(after); index < this.columns.length; index += 1) {
      if (compareIds(this.columns[index].id, to) > 0) return;
      yield this.columns[index];
    }
  }

  /** What is known and has not come to the reader: how much, and since when the first of it is known. */
  pending({ position }) {
    const index = this.indexAfter(position);
    return { count: this.columns.length - index, since: this.columns[index]?.knownAt };
  }

  /** The reader has gone on: what lies between and has not come, it has missed. */
  pass({ row, counts }, after, to) {
    for (const { cells } of this.between(after, to)) {
      if (cells[row] !== "pending") continue;
      cells[row] = "missed";
      counts.missed += 1;
    }
  }

  /** The reader was told that something between may not come; some of it may have looked missed until now. */
  excuse({ row, counts }, after, to) {
    for (const { cells } of this.between(after, to)) {
      if (cells[row] === "missed") counts.missed -= 1;
      if (cells[row] === "missed" || cells[row] === "pending") cells[row] = "gap";
    }
  }

  /** This page published the event at `sentAt`. It may well have arrived before the answer that tells its id. */
  published(id, sentAt) {
    const column = this.column(id);
    if (!column) return;
    column.sentAt = sentAt;
    column.arrivals.forEach((arrivedAt, row) => this.readers[row].measure(id, arrivedAt - sentAt, true));
  }
}

// ------------------------------------------------------------------------------------------------------------- reader

/** One pane's side of the topic: its position, what it has received, and what it shows. */
class Reader {
  constructor(ledger, view, keepalive) {
    this.ledger = ledger;
    this.keepalive = keepalive; // the server's setting that breaks its silence
    this.row = ledger.readers.push(this) - 1;
    this.view = view;
    this.position = null;
    this.floor = null; // events that come now are behind it: within a gap, some may be there still
    this.excused = []; // [after, to] ranges that were announced as gaps
    this.counts = { received: 0, requests: 0, bytes: 0, missed: 0, twice: 0, gaps: 0 };
    this.state = { name: "connecting", text: "connecting" };
    this.latency = null;
    this.samples = new Map(); // id -> latency
    this.connection = null;
    this.isCut = false;
    this.isAnswered = false;
    this.isInterrupted = false;
    this.skipPause = null;
    this.mayHurry = false;
    this.heardAt = 0; // when something was last heard of the connection: asked, answered, an event
    this.quietSince = 0; // from when on neither an event came nor the connection was lost
    this.refusal = null; // why there is no connection at all, in words
    this.lostAfterMs = null; // the silence after which the connection was lost, until it is clear whether for that
    this.cut = null; // how often it was lost for its silence, and how long that was the last time
    this.outlivedMs = 0; // the silence that was not the end, after one that was
  }

  startAt(id) {
    this.position = this.floor = id;
    this.quietSince = performance.now();
    this.excused.push(["0-0", id]);
  }

  /** What a newly known id is for this pane. */
  cellFor(id) {
    if (compareIds(id, this.position) > 0) return "pending";
    return this.excused.some(([after, to]) => compareIds(id, after) > 0 && compareIds(id, to) <= 0) ? "gap" : "missed";
  }

  event({ id, type, data }) {
    const arrivedAt = performance.now();
    this.heardAt = this.quietSince = arrivedAt;
    this.counts.received += 1;
    const isRepeated = compareIds(id, this.floor) <= 0;
    if (!isRepeated) this.floor = id;
    const column = this.ledger.column(id);
    if (isRepeated) this.counts.twice += 1;
    if (column) {
      column.cells[this.row] = isRepeated ? "twice" : "got";
      column.arrivals[this.row] ??= arrivedAt;
    }
    this.moveTo(id);
    this.view.add({ kind: "event", id, type, data, isRepeated });
    const isOurs = column !== null && column.sentAt !== null;
    const milliseconds = isOurs ? arrivedAt - column.sentAt : sinceId(id, arrivedAt);
    if (milliseconds !== null) this.measure(id, milliseconds, isOurs);
    render();
  }

  /** The server says that all ids up to `id` have been sent. */
  moveTo(id) {
    if (compareIds(id, this.position) <= 0) return;
    this.ledger.pass(this, this.position, id);
    this.position = id;
    render();
  }

  gap({ reason, after, resumed_at: resumedAt }) {
    this.counts.gaps += 1;
    this.ledger.excuse(this, after, resumedAt);
    this.excused.push([after, resumedAt]);
    if (this.excused.length > ROWS) this.excused.shift();
    // Only a server that has never been where this pane is sets it back.
    if (reason === "unknown_id") this.floor = resumedAt;
    if (reason === "unknown_id" || compareIds(resumedAt, this.position) > 0) this.position = resumedAt;
    this.view.add({ kind: "gap", reason, after, resumedAt });
    announce(`${this.view.name}: gap announced, ${GAP_REASONS[reason] ?? reason}`);
    render();
  }

  measure(id, milliseconds, isExact) {
    this.latency = { milliseconds, isExact };
    this.view.setLatency(id, this.latency);
    this.samples.set(id, milliseconds);
    if (this.samples.size > SAMPLES) this.samples.delete(this.samples.keys().next().value);
    render();
  }

  /** A request goes out, for which this page counts one, whatever becomes of it. */
  asks(state) {
    this.counts.requests += 1;
    this.heardAt = performance.now();
    this.show(...state);
  }

  /** The server has answered; after an interruption the list says from where it goes on. */
  answered(name, text) {
    this.heardAt = performance.now();
    this.isAnswered = true;
    this.refusal = null;
    this.judgeLoss();
    if (this.isInterrupted) {
      this.quietSince = this.heardAt;
      hurry(this.ledger.readers);
      this.isInterrupted = false;
      this.view.add({ kind: "resumed", position: this.position });
      announce(`${this.view.name}: connected again`);
    }
    this.show(name, text);
  }

  show(name, text) {
    this.state = { name, text };
    render();
  }

  /** The connection was lost, and nobody said goodbye. */
  lost(how, { isForSilence = false } = {}) {
    const now = performance.now();
    const quietMs = now - this.heardAt;
    this.quietSince = now;
    if (quietMs < SILENCE_MS) return new Ended(how);
    this.isAnswered = true; // or at least it was there for a while
    const text = `cut after ${inSeconds(quietMs)} without an event`;
    this.view.add({ kind: "lost", text: `${text}: ${how}` });
    this.lostAfterMs = quietMs;
    if (isForSilence) this.judgeLoss();
    return new Ended(text);
  }

  /** Not even an attempt to come back succeeds: whoever was there before is gone. */
  failed() {
    this.lostAfterMs = null;
    return new Ended("connection lost");
  }

  /** It came back at once: the server was there all the time, and not about to go. So it was lost for its silence. */
  judgeLoss() {
    if (this.lostAfterMs === null) return;
    if (performance.now() - this.ledger.goodbyeAt > GOODBYE_MS) {
      this.cut = { count: (this.cut?.count ?? 0) + 1, quietMs: this.lostAfterMs };
      this.outlivedMs = 0;
    }
    this.lostAfterMs = null;
  }

  /** Looks whether a silence like the one that ended in a cut is survived by now. */
  look(now) {
    const quietMs = now - this.quietSince;
    const isSurvived = this.cut && this.state.name === "open" && quietMs > this.cut.quietMs * OUTLIVED;
    if (isSurvived) this.outlivedMs = Math.max(this.outlivedMs, quietMs);
  }

  /** What the pane's button does: cuts a living connection, or ends the wait for the next one. */
  press() {
    if (this.skipPause) {
      this.skipPause();
    } else {
      this.isCut = true;
      this.connection.abort();
      announce(`${this.view.name}: cut`);
    }
  }

  /** Resolves after the time, or earlier when the button is pressed; without a time only then. */
  async pause(milliseconds, { mayHurry = false } = {}) {
    this.mayHurry = mayHurry;
    await new Promise((resolve) => {
      this.skipPause = resolve;
      if (milliseconds !== null) setTimeout(resolve, milliseconds);
    });
    this.skipPause = null;
    this.mayHurry = false;
  }
}

/** One connection is there again, so whoever waits for nothing but that need not wait any longer. */
function hurry(readers) {
  for (const reader of readers) if (reader.mayHurry) reader.skipPause();
}

/** Age of an event by the newest time in its id and by our clock: the two may differ. Null where it has none: Kafka. */
function sinceId(id, arrivedAt) {
  const ms = Math.max(...[...shardsOf(id).values()].map((plain) => Number(plain.split("-")[0])));
  return ms < FIRST_MS ? null : Math.round(performance.timeOrigin + arrivedAt - ms);
}

// ----------------------------------------------------------------------------------------------------------- identity

/** Who this page is to the server. The token is kept nowhere but here: not in the address, and in no storage. */
const identity = { token: "", changed: null };

/** The headers of a request, with the token once there is one. A cookie needs nothing: the browser sends it. */
function withToken(headers = {}) {
  return identity.token ? { ...headers, Authorization: `Bearer ${identity.token}` } : headers;
}

/** The parameter for the URL of an EventSource, which can set no header: a ticket, good for this one connection. */
async function ticket(signal) {
  if (!identity.token) return {};
  const response = await fetch("/ticket", { method: "POST", signal, headers: withToken() });
  if (!response.ok) throw await refusal(response);
  return { ticket: (await response.json()).ticket };
}

/** Shows the field for a token; resolves when another one was given. */
function askForToken(why) {
  byId("identity-why").textContent = why;
  byId("identity-why").className = identity.token ? "problem" : "hint";
  byId("identity").hidden = false;
  identity.changed ??= new Promise((resolve) => {
    byId("identity").onsubmit = (event) => {
      event.preventDefault();
      identity.token = byId("token").value.trim();
      identity.changed = null;
      byId("token").value = "";
      byId("identity").hidden = true;
      byId("curl").textContent = curlCommand();
      resolve();
    };
  });
  return identity.changed;
}

// --------------------------------------------------------------------------------------------------------- transports

/** The connection ended in a way that says when to come back, or that coming back is of no use. */
class Ended extends Error {
  constructor(message, options = {}) {
    const { retryAfterMs = null, isFinal = false, isGoodbye = false, needsToken = false, why = null } = options;
    super(message);
    this.retryAfterMs = retryAfterMs;
    this.isFinal = isFinal;
    this.needsToken = needsToken; // the server asks who this is
    this.isGoodbye = isGoodbye; // the server goes down, and says so
    this.why = why; // what there is to be said of a refusal
  }
}

function eventsUrl(parameters, path = "/events") {
  return `${path}?${new URLSearchParams({ topic, ...parameters })}`;
}

/** Long polling: each request waits for the first event, and its answer says where the next one has to begin. */
async function longPoll(reader, signal) {
  for (;;) {
    reader.asks(["open", "request waiting"]);
    const url = eventsUrl({ last_id: reader.position });
    const headers = withToken({ Accept: "application/json" });
    const response = await fetch(url, { signal, cache: "no-store", headers });
    // RFC 9110 15.6.5: this is not the server speaking, but somebody in front who did not wait for it any longer.
    if (response.status === 504) throw reader.lost("HTTP 504", { isForSilence: true });
    if (!response.ok) throw await refusal(response);
    const body = await response.text();
    reader.answered("open", "request waiting");
    reader.counts.bytes += utf8Size(body);
    if (response.status === 200) {
      const { events, gap } = JSON.parse(body);
      if (gap) reader.gap(gap);
      events.forEach((event) => reader.event(event));
    }
    const next = response.headers.get("Last-Event-ID");
    if (next) reader.moveTo(next);
    const retryAfterMs = retryAfter(response);
    if (retryAfterMs !== null) throw new Ended("the server restarts", { retryAfterMs, isGoodbye: true });
  }
}

/** Server-Sent Events: the browser reads the stream, and after a loss comes back by itself with Last-Event-ID. */
async function eventStream(reader, signal) {
  reader.asks(["connecting", "connecting"]);
  const who = await ticket(signal);
  return new Promise((resolve, reject) => {
    // With the envelope every event comes under the default name, whatever its type; EventSource has no "any" listener.
    const source = new EventSource(eventsUrl({ last_id: reader.position, envelope: "json", ...who }));
    source.onopen = () => reader.answered("open", "stream open");
    source.onmessage = ({ data }) => {
      reader.counts.bytes += utf8Size(data);
      reader.event(JSON.parse(data));
    };
    source.addEventListener("tricast.gap", ({ data }) => {
      reader.counts.bytes += utf8Size(data);
      reader.gap(JSON.parse(data));
    });
    source.onerror = () => {
      reader.isInterrupted = true;
      if (source.readyState === EventSource.CLOSED) {
        // An EventSource does not tell why (HTML 9.2.3); with a token, it may be that which the server refuses.
        const asked = identity.token ? headOfEvents(signal) : Promise.resolve();
        asked.then(() => reject(new Ended("the stream was refused")), reject);
      } else {
        const { message } = reader.isAnswered ? reader.lost("the stream ended") : reader.failed();
        reader.isAnswered = false;
        reader.asks(["connecting", `${message}, the browser reconnects`]);
      }
    };
    signal.addEventListener("abort", () => {
      source.close();
      resolve();
    });
  });
}

/**
 * WebSocket: one text frame per event; the first one answers the subscription in the URL.
 *
 * At /events, a request whose Upgrade got lost on the way is a long poll, and a browser would wait for its end; /ws
 * refuses it at once.
 */
function webSocket(reader, signal) {
  return new Promise((resolve, reject) => {
    reader.asks(["connecting", "connecting"]);
    const url = new URL(eventsUrl({ last_id: reader.position }, "/ws"), location.href);
    let isOpen = false;
    url.protocol = url.protocol.replace("http", "ws");
    const who = identity.token ? [`tricast.token.${identity.token}`] : [];
    const socket = new WebSocket(url, ["tricast.v1", ...who]);
    socket.onopen = () => (isOpen = true);
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      reader.counts.bytes += utf8Size(data);
      if (message.ok === "subscribe") reader.answered("open", "socket open");
      else if (message.gap) reader.gap(message.gap);
      else if (message.id) reader.event(message);
      else if (message.error) reject(new Ended(message.error.message));
    };
    socket.onclose = ({ code, reason }) => {
      if (signal.aborted) resolve();
      else if (!isOpen) whyNoWebSocket(signal).then(reject, reject);
      else if (code === 1006) reject(reader.lost("no goodbye"));
      else reject(new Ended(reason || `closed with ${code}`, { isGoodbye: code === RESTARTING }));
    };
    signal.addEventListener("abort", () => {
      // What is on its way while the close is shaken hands over belongs to the connection that was cut.
      socket.onmessage = null;
      socket.close();
      resolve();
    });
  });
}

/**
 * Why a WebSocket did not open. Browsers keep that to themselves (WHATWG WebSockets, "Feedback from the protocol"), so
 * the server is asked in plain HTTP: is it there, and does it take this page for its own? A POST tells the origin, and
 * without a topic publishes nothing.
 */
async function whyNoWebSocket(signal) {
  try {
    const plain = await fetch("/ws", { signal, cache: "no-store" });
    if (plain.status !== 426) {
      return new Ended("refused", { retryAfterMs: retryAfter(plain), why: `Refused: ${(await problemOf(plain)).detail}.` });
    }
    await headOfEvents(signal);
    const posted = await fetch("/publish", { method: "POST", signal, headers: withToken() });
    const isForeign = posted.status === 403 && isOurs(posted);
    return new Ended("refused", { why: isForeign ? FOREIGN_ORIGIN : NO_UPGRADE });
  } catch (error) {
    if (error instanceof TypeError || error.name === "AbortError") return new Ended("connection lost");
    throw error;
  }
}

/** The answer to HEAD /events, where it is a good one. What is wrong is told in a body, so it is asked for with a GET. */
async function headOfEvents(signal) {
  const options = { signal, cache: "no-store", headers: withToken() };
  const response = await fetch(eventsUrl({}), { ...options, method: "HEAD" });
  if (!response.ok) throw await refusal(await fetch(eventsUrl({}), options));
  return response;
}

/** The error of an HTTP answer, in the server's own words where it gave some (RFC 9457). */
async function refusal(response) {
  const isFinal = response.status >= 400 && response.status < 500 && ![408, 425, 429].includes(response.status);
  const { type, detail } = await problemOf(response);
  // With another token more may be allowed.
  const needsToken = type !== null && (response.status === 401 || type === "urn:tricast:topic-not-allowed");
  return new Ended(detail, { retryAfterMs: retryAfter(response), isFinal, needsToken });
}

/** What an answer says went wrong; no type where it is not Tricast that says so. */
async function problemOf(response) {
  const { type = null, detail = "" } = isOurs(response) ? await response.json() : {};
  return { type, detail: detail || `the server answered ${response.status}` };
}

function isOurs(response) {
  return response.headers.get("Content-Type")?.startsWith("application/problem+json");
}

function retryAfter(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return Number.isFinite(seconds) ? seconds * 1000 : null;
}

/** Keeps one pane connected for as long as the page lives. */
async function follow(reader, connect) {
  let failures = 0;
  for (;;) {
    reader.isCut = false;
    reader.isAnswered = false;
    reader.connection = new AbortController();
    const ended = await endOf(connect, reader);
    reader.isInterrupted = true;
    if (!reader.isAnswered) reader.failed();
    if (reader.isCut) {
      failures = 0;
      reader.show("cut", `cut, back in ${CUT_MS / 1000} s`);
      await reader.pause(CUT_MS);
    } else if (ended.needsToken) {
      reader.show("refused", ended.message);
      await askForToken(ended.message);
    } else if (ended.isFinal) {
      reader.show("refused", ended.message);
      await reader.pause(null);
    } else {
      failures = reader.isAnswered ? 1 : failures + 1;
      reader.refusal = ended.why;
      if (ended.isGoodbye) reader.ledger.goodbyeAt = performance.now();
      const delay = ended.retryAfterMs ?? backoff(failures);
      reader.show(ended.why ? "refused" : "waiting", `${ended.message}, again in ${inSeconds(delay)}`);
      await reader.pause(delay, { mayHurry: ended.retryAfterMs === null });
    }
  }
}

/** How the connection ended, as an Ended. A connection that is lost is news here, not an exception. */
async function endOf(connect, reader) {
  try {
    await connect(reader, reader.connection.signal);
    return new Ended("connection ended");
  } catch (error) {
    reader.connection.abort();
    if (error instanceof Ended) return error;
    if (error.name === "AbortError") return new Ended("connection lost");
    if (error instanceof TypeError) return reader.lost("connection lost");
    throw error;
  }
}

/** Doubles with every failure, and spreads clients that lost their server at the same moment. */
function backoff(failures) {
  const ceiling = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (failures - 1));
  return ceiling * (0.5 + Math.random() / 2);
}

/** Where the topic stands now, so that all panes begin at the same place; or that they begin with all that is kept. */
async function learnStart() {
  const signal = AbortSignal.timeout(START_TIMEOUT_MS);
  try {
    const response = await headOfEvents(signal);
    return response.headers.get("Last-Event-ID") ?? "0-0";
  } catch (error) {
    if (error instanceof Ended && error.isFinal) throw error;
    return "0-0";
  }
}

// ------------------------------------------------------------------------------------------------------------ finding

const NO_UPGRADE =
  "Refused: no HTTP 101. The server can be reached, but it answers 426, Upgrade Required: a proxy in front does not " +
  "forward Upgrade.";
const FOREIGN_ORIGIN =
  `Refused: the server does not take this page for its own. A proxy in front does not forward Host, or ` +
  `server.cors_origins has to name ${location.origin}.`;

/** What there is to say about a connection; null while all is as it should be. */
function finding(reader, now) {
  if (reader.refusal) return { kind: "refused", text: reader.refusal };
  return held(reader, now) ?? cutOrNot(reader);
}

/** Others got what was published, and this connection, which was there all the time, did not. */
function held(reader, now) {
  const { count, since } = reader.ledger.pending(reader);
  const isAsking = reader.state.name === "open" || reader.state.name === "connecting";
  if (!isAsking || count === 0 || now - Math.max(reader.heardAt, since) < HELD_MS) return null;
  const seconds = Math.floor((now - reader.heardAt) / 1000);
  const what = reader.isAnswered ? "Connected, but no event has come" : "No answer";
  const others = `although ${plural(count, "event")} came over the other connections`;
  return { kind: "held", text: `${what} for ${seconds} s, ${others}: a proxy in front holds them back.` };
}

function cutOrNot({ cut, outlivedMs, keepalive }) {
  if (!cut) return null;
  if (outlivedMs > 0) {
    return { kind: "outlived", text: `No longer cut: it has lived through ${inSeconds(outlivedMs)} without an event.` };
  }
  const often = cut.count === 1 ? "Cut" : `Cut ${cut.count} times, the last time`;
  const why = `Probably a proxy in front has no more patience than that: ${keepalive} has to be shorter.`;
  return { kind: "cut", text: `${often} after ${inSeconds(cut.quietMs)} without an event. ${why}` };
}

// --------------------------------------------------------------------------------------------------------------- view

const GAP_REASONS = {
  evicted: "the events after it are no longer kept",
  restarted: "the server restarted and kept no history",
  slow: "this connection read too slowly",
  unknown_id: "the server does not know this id",
};

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const inSeconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

function formatBytes(bytes) {
  if (bytes < 10000) return `${bytes.toLocaleString("en")} B`;
  return bytes < 1e7 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function formatDuration(milliseconds, isExact) {
  const size = Math.abs(milliseconds);
  if (size < 1000) return `${milliseconds.toFixed(isExact && size < 100 ? 1 : 0)} ms`;
  if (size < 60e3) return `${(milliseconds / 1e3).toFixed(2)} s`;
  return size < 3600e3 ? `${(milliseconds / 60e3).toFixed(0)} min` : `${(milliseconds / 3600e3).toFixed(0)} h`;
}

const formatLatency = ({ milliseconds, isExact }) => (isExact ? "" : "≈ ") + formatDuration(milliseconds, isExact);

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shown(data) {
  const text = JSON.stringify(data);
  return text.length > DATA_SHOWN ? `${text.slice(0, DATA_SHOWN)}…` : text;
}

/** One pane on the page. Rows wait in memory until the next frame, never more of them than the pane would keep. */
class PaneView {
  constructor({ key, name, how, idle }) {
    this.name = name;
    this.root = byId("pane-template").content.firstElementChild.cloneNode(true);
    this.root.id = `pane-${key}`;
    this.root.querySelector("h2").textContent = name;
    this.root.querySelector("h2").id = `title-${key}`;
    this.root.setAttribute("aria-labelledby", `title-${key}`);
    this.root.querySelector(".how").textContent = how;
    this.root.querySelector(".empty").textContent = idle;
    this.list = this.root.querySelector(".events");
    this.list.setAttribute("aria-label", `Events over ${name}, newest first`);
    this.button = this.root.querySelector(".cut");
    this.fields = new Map();
    for (const field of this.root.querySelectorAll("[data-count], [data-text]")) {
      this.fields.set(field.dataset.count ?? field.dataset.text, field);
    }
    this.waiting = []; // rows for the next frame, oldest first
    this.latencies = new Map(); // id -> the cell of its latest row, as long as that row is kept
    this.channel = element("li", "channel");
    this.channel.append(element("i", "lamp"), element("a", "", name), element("span", "lag", ""));
    this.channel.querySelector("a").href = `#${this.root.id}`;
  }

  add(entry) {
    const row = element("li", entry.kind);
    ROW_PARTS[entry.kind](row, entry);
    if (entry.kind === "event") this.latencies.set(entry.id, row.querySelector(".latency"));
    this.waiting.push(row);
    if (this.waiting.length > ROWS) this.forget(this.waiting.shift());
  }

  setLatency(id, latency) {
    const cell = this.latencies.get(id);
    if (cell) cell.textContent = formatLatency(latency);
  }

  forget(row) {
    const { id } = row.dataset;
    if (id && this.latencies.get(id) === row.querySelector(".latency")) this.latencies.delete(id);
  }

  render(reader, newest, now) {
    if (this.waiting.length > 0) this.list.prepend(...this.waiting.reverse());
    this.waiting = [];
    while (this.list.childElementCount > ROWS) {
      this.forget(this.list.lastElementChild);
      this.list.lastElementChild.remove();
    }
    const { counts, state } = reader;
    for (const name of ["received", "requests", "missed", "twice", "gaps"]) {
      this.write(name, counts[name].toLocaleString("en"));
    }
    for (const check of this.root.querySelectorAll("[data-check]")) {
      check.classList.toggle("hit", counts[check.dataset.check] > 0);
    }
    this.write("bytes", formatBytes(counts.bytes));
    this.write("latency", reader.latency ? formatLatency(reader.latency) : "–");
    this.write("median", reader.samples.size > 0 ? formatDuration(median(reader.samples.values()), true) : "–");
    const quietMs = now - reader.quietSince;
    const isQuiet = state.name === "open" && quietMs >= QUIET_MS;
    this.write("state", state.text + (isQuiet ? `, no event for ${Math.floor(quietMs / 1000)} s` : ""));
    const found = finding(reader, now);
    this.renderState(reader, newest, found);
    this.renderFinding(found);
  }

  renderFinding(found) {
    const kind = found?.kind ?? "";
    this.write("finding", found?.text ?? "");
    if (this.root.dataset.finding === kind) return;
    this.root.dataset.finding = kind;
    if (found) announce(`${this.name}: ${found.text.replace(/\.$/, "")}`);
  }

  renderState({ state, position }, newest, found) {
    this.root.dataset.state = state.name;
    this.channel.dataset.state = state.name;
    const isBehind = newest !== undefined && compareIds(newest, position) > 0;
    const lag = found?.kind === "held" ? "held back" : state.name;
    this.channel.querySelector(".lag").textContent = lag !== "open" ? lag : isBehind ? "behind" : "";
    const isConnected = state.name === "open" || state.name === "connecting";
    const label = isConnected ? "Cut" : "Reconnect now";
    if (this.button.textContent !== label) this.button.textContent = label;
    this.button.setAttribute("aria-label", `${label}: ${this.name}`);
  }

  write(name, text) {
    const field = this.fields.get(name);
    if (field.textContent !== text) field.textContent = text;
  }
}

const ROW_PARTS = {
  event(row, { id, type, data, isRepeated }) {
    row.dataset.id = id;
    row.style.setProperty("--hue", hueOf(id));
    row.classList.toggle("repeated", isRepeated);
    const text = element("span", "payload");
    if (type !== "message") text.append(element("b", "tag", type), " ");
    text.append(shown(data));
    row.append(element("i", "chip"), element("span", "id", id), text, element("span", "latency"));
  },
  gap(row, { reason, after, resumedAt }) {
    row.append(element("b", "", `Gap: ${GAP_REASONS[reason] ?? reason}`));
    row.append(element("span", "", `asked after ${after}, resumed at ${resumedAt}`));
  },
  lost(row, { text }) {
    row.append(text);
  },
  resumed(row, { position }) {
    row.append("connected again, after ", element("span", "id", position));
  },
};

/** The record of the last events over all panes: a column per event, a cell per pane. */
class TapeView {
  constructor(root) {
    this.root = root;
    this.shown = new Map(); // id -> its column's element
  }

  render(columns) {
    const visible = columns.slice(-COLUMNS);
    const kept = new Set(visible.map((column) => column.id));
    for (const [id, node] of this.shown) {
      if (!kept.has(id)) {
        node.remove();
        this.shown.delete(id);
      }
    }
    let next = null;
    for (const column of visible.reverse()) next = this.place(column, next);
  }

  place({ id, cells }, next) {
    let node = this.shown.get(id);
    if (!node) {
      node = element("div", "column");
      node.style.setProperty("--hue", hueOf(id));
      node.append(...cells.map(() => element("i", "cell")));
      this.shown.set(id, node);
    }
    if (node.nextSibling !== next || !node.isConnected) this.root.insertBefore(node, next);
    cells.forEach((cell, row) => {
      const drawn = node.children[row].dataset;
      if (drawn.cell !== cell) drawn.cell = cell;
    });
    return node;
  }
}

/** What the page has found so far, in one sentence. */
function verdict(readers, now) {
  const total = (name) => readers.reduce((sum, { counts }) => sum + counts[name], 0);
  const [missed, twice, gaps] = ["missed", "twice", "gaps"].map(total);
  if (missed || twice) return { kind: "bad", text: `${missed} missed, ${twice} twice: this should never happen` };
  const isHeld = (reader) => held(reader, now) !== null;
  const troubles = [
    ["not connected", readers.filter((reader) => reader.state.name !== "open" && !isHeld(reader))],
    ["held back", readers.filter(isHeld)],
  ].filter(([, those]) => those.length > 0);
  if (troubles.length > 0) {
    const parts = troubles.map(([name, those]) => `${name}: ${those.map(({ view }) => view.name).join(", ")}`);
    const text = parts.join("; ");
    return { kind: "away", text: text[0].toUpperCase() + text.slice(1) };
  }
  const announced = gaps > 0 ? `; ${plural(gaps, "gap")} announced` : "";
  const received = Math.max(...readers.map(({ counts }) => counts.received));
  if (received === 0) return { kind: "good", text: `All three connected, waiting for events${announced}` };
  return { kind: "good", text: `${plural(received, "event")}: nothing missed, nothing twice${announced}` };
}

let draw = () => {};
let isDrawing = false;

/** Draws all that has changed, once per frame however many events arrive in it. */
function render() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    draw();
  });
}

let announcements = [];

/** Tells a screen reader what happened to a connection; events are not read out, and news are gathered for a second. */
function announce(text) {
  announcements.push(text);
  if (announcements.length > 1) return;
  setTimeout(() => {
    byId("announcer").textContent = announcements.slice(-6).join(". ");
    announcements = [];
  }, 1000);
}

// --------------------------------------------------------------------------------------------------- publish and copy

async function publish(ledger) {
  const output = byId("published");
  const data = byId("data").value;
  const sentAt = performance.now();
  try {
    const url = `/publish?${new URLSearchParams({ topic, type: byId("type").value.trim() })}`;
    const response = await fetch(url, { method: "POST", body: data, headers: withToken() });
    if (!response.ok) throw await refusal(response);
    const { id } = await response.json();
    ledger.published(id, sentAt);
    output.className = "";
    output.textContent = `Published as ${id}`;
    proposeNext(data);
    render();
  } catch (error) {
    if (!(error instanceof Ended || error instanceof TypeError)) throw error;
    if (error.needsToken) askForToken(error.message);
    output.className = "problem";
    output.textContent = error instanceof Ended ? error.message : "The server cannot be reached";
  }
}

/** Counts the proposed data up, so that pressing the button again publishes something one can tell apart. */
function proposeNext(published) {
  const match = /^\{"n":(\d{1,9})\}$/.exec(published);
  if (match && byId("data").value === published) byId("data").value = `{"n":${Number(match[1]) + 1}}`;
}

function curlCommand() {
  const target = `${location.origin}/publish?topic=${encodeURIComponent(topic).replaceAll("'", "%27")}`;
  const who = identity.token ? `-H "Authorization: Bearer $TRICAST_TOKEN" ` : "";
  return `curl ${who}-d '{"hello":"world"}' '${target}'`;
}

async function copyCommand() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    button.textContent = "Copied";
    announce("Command copied");
  } catch {
    // No clipboard without TLS or permission: the text is selected instead, one key away from being copied.
    getSelection().selectAllChildren(byId("curl"));
    button.textContent = "Selected";
    announce("Command selected, copy it with the keyboard");
  }
  setTimeout(() => (button.textContent = "Copy"), 1600);
}

function wireForms(ledger) {
  byId("topic").value = topic;
  document.title = `${topic} · Tricast`;
  byId("curl").textContent = curlCommand();
  byId("copy").addEventListener("click", copyCommand);
  byId("publish").addEventListener("submit", (event) => {
    event.preventDefault();
    publish(ledger);
  });
  byId("data").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("publish").requestSubmit();
  });
}

// -------------------------------------------------------------------------------------------------------------- start

const TRANSPORTS = [
  {
    key: "poll",
    name: "Long polling",
    how: "fetch, again and again",
    idle: "No events yet. A request waits at the server; the next event answers it, and another request follows.",
    keepalive: "poll.timeout",
    connect: longPoll,
  },
  {
    key: "sse",
    name: "Server-Sent Events",
    how: "EventSource, one endless response",
    idle: "No events yet. One response stays open, and each event is written to its end.",
    keepalive: "sse.keepalive",
    connect: eventStream,
  },
  {
    key: "ws",
    name: "WebSocket",
    how: "WebSocket, one frame per event",
    idle: "No events yet. One socket stays open in both directions, and each event comes as a frame.",
    keepalive: "websocket.ping_interval",
    connect: webSocket,
  },
];

/** The same, asking for a token for as long as the server wants one; null when it is of no use to go on. */
async function learnStartAsSomebody() {
  for (;;) {
    try {
      return await learnStart();
    } catch (error) {
      byId("verdict").textContent = "Not connected";
      if (error.needsToken) {
        await askForToken(error.message);
      } else {
        byId("topic-error").textContent = error.message;
        byId("topic-error").hidden = false;
        byId("topic").setAttribute("aria-invalid", "true");
        return null;
      }
    }
  }
}

async function start() {
  const ledger = new Ledger();
  const tape = new TapeView(byId("tape"));
  const readers = TRANSPORTS.map((transport) => new Reader(ledger, new PaneView(transport), transport.keepalive));
  byId("panes").append(...readers.map(({ view }) => view.root));
  byId("channels").append(...readers.map(({ view }) => view.channel));
  wireForms(ledger);

  const position = await learnStartAsSomebody();
  if (position === null) return;
  draw = () => {
    const now = performance.now();
    const newest = ledger.columns.at(-1)?.id;
    readers.forEach((reader) => {
      reader.look(now);
      reader.view.render(reader, newest, now);
    });
    tape.render(ledger.columns);
    const { kind, text } = verdict(readers, now);
    byId("verdict").dataset.kind = kind;
    byId("verdict").textContent = text;
  };
  readers.forEach((reader, index) => {
    reader.startAt(position);
    reader.view.button.addEventListener("click", () => reader.press());
    follow(reader, TRANSPORTS[index].connect);
  });
  setInterval(render, TICK_MS);
}

start();
