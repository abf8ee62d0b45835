// SPDX-License-Identifier: MIT
// What the server tells, once for all pages of a browser: of those that are in view one has the
// stream of events, and passes on what it brings.
//
// A browser has six connections to a server that speaks HTTP/1.1. With a stream a page, six windows
// would have none left to ask with. Where the browser has no locks (a page that comes without TLS
// from another machine) each page has a stream of its own.

const NAME = `aioktask ${new URL(".", location).pathname}`;
const KINDS = ["hello", "marks", "state", "end"];

export class Stream {
  // `told` is called with the kind of each event and its data; "broken" where the server refused.
  // `marks` tells all marks that this page has, as the server would.
  constructor(told, marks) {
    this.told = told;
    this.marks = marks;
    this.hello = null; // what it told of who looks; null while this page has no stream
    this.source = null;
    this.channel = null;
    this.leave = null;
  }

  // Whether the server refused the stream, so that the browser does not try again by itself.
  get broken() {
    return this.source?.readyState === EventSource.CLOSED;
  }

  open() {
    this.close();
    if (!navigator.locks || !window.BroadcastChannel) {
      this.connect(() => {});
      return;
    }
    const channel = (this.channel = new BroadcastChannel(NAME));
    const me = Math.random();
    channel.onmessage = ({ data: { kind, data, from, to } }) => {
      if (kind === "who?") {
        if (this.hello !== null) {
          channel.postMessage({ kind: "hello", data: this.hello, to: from });
          channel.postMessage({ kind: "marks", data: JSON.stringify(this.marks()), to: from });
        }
      } else if (to === undefined || to === me) {
        this.told(kind, data);
      }
    };
    const leaving = new AbortController();
    const left = new Promise((resolve) => (this.leave = () => {
      leaving.abort();
      resolve();
    }));
    // It is held for as long as this page has the stream; the next one then gets it.
    navigator.locks.request(NAME, { signal: leaving.signal }, () => {
      if (this.channel === channel) this.connect((kind, data) => channel.postMessage({ kind, data }));
      return left;
    }).catch(() => {}); // it left before its turn came
    channel.postMessage({ kind: "who?", from: me });
  }

  // Tells the other pages of this browser, beside what the server tells.
  say(kind) {
    this.channel?.postMessage({ kind });
  }

  connect(pass) {
    const source = (this.source = new EventSource("events"));
    for (const kind of KINDS) {
      source.addEventListener(kind, ({ data }) => {
        if (kind === "hello") this.hello = data;
        pass(kind, data);
        this.told(kind, data);
      });
    }
    source.onerror = () => {
      if (this.source === source && this.broken) this.told("broken", "");
    };
  }

  close() {
    this.source?.close();
    this.source = null;
    this.hello = null;
    this.channel?.close();
    this.channel = null;
    this.leave?.();
    this.leave = null;
  }
}
