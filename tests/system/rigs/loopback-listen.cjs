// SPDX-License-Identifier: Apache-2.0
// Preload (`node --require`) that makes every TCP server of the process listen on 127.0.0.1, whatever it asks for.
// The way to run servers that bind every interface where no network namespace can be made.
//
// listen(port, '127.0.0.1') would not do: Node then looks the host up first, and code that reads server.address()
// right after listen() finds null. So the handle is bound here, at once, and listen() gets the handle.
const net = require('node:net');

const listen = net.Server.prototype.listen;
const isPort = (value) => typeof value === 'number' || (typeof value === 'string' && /^\d+$/.test(value));

function wantedPort([first]) {
  if (first === undefined || typeof first === 'function') return 0;
  if (first !== null && typeof first === 'object') return isPort(first.port) ? Number(first.port) : undefined;
  return isPort(first) ? Number(first) : undefined;
}

net.Server.prototype.listen = function listenOnLoopback(...args) {
  const port = wantedPort(args);
  if (port === undefined) return listen.apply(this, args); // a path or a handle: no address
  const handle = net._createServerHandle('127.0.0.1', port, 4, -1);
  if (typeof handle === 'number') throw new Error(`cannot bind 127.0.0.1:${port} (errno ${handle})`);
  return listen.call(this, handle, ...args.filter((a) => typeof a === 'function'));
};
