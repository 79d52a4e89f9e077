// Sends what the test wants to find in the collector, with all that hot-shots has: node send.js HOST PORT ON|OFF
// ON or OFF: whether it aggregates before it sends.
'use strict';
const StatsD = require('hot-shots');

const [host, port, aggregates] = process.argv.slice(2);
const client = new StatsD({
  host,
  port: Number(port),
  globalTags: { service: 'shop' },
  // What is set within a second is in one datagram.
  maxBufferSize: 1400,
  aggregation: aggregates === 'ON',
  errorHandler: (error) => {
    throw error;
  },
});

const tags = { model: 'v1', path: 'a b' };
for (let value = 1; value <= 100; value += 1) {
  client.increment('hot.jobs', 2, tags);
  client.decrement('hot.credit', 1, tags);
  client.gauge('hot.depth', value, tags);
  client.timing('hot.latency', value, tags);
  client.histogram('hot.size', value, tags);
  client.distribution('hot.spread', value, tags);
  client.increment('hot.sampled', 1, 0.3, ['model:v1']);
}
client.timing('hot.since', new Date(Date.now() - 5000));
client.gauge('hot.cold', -4);
client.gauge('hot.level', 10);
// A delta is sent past what is aggregated: the level first.
client.flush(() => {
  client.gaugeDelta('hot.level', 5);
  client.gaugeDelta('hot.level', -2);
  client.increment(['hot.both', 'hot.two'], 3);
  client.increment('hot.stamped', 4, { timestamp: new Date() });
  client.set('hot.visitors', 'ann', tags);
  client.unique('hot.visitors', 'bob', tags);
  client.set('hot.visitors', 'ann', tags);
  client.event('deployed', 'with\nlines', { alert_type: 'info' }, { version: '2' });
  client.event('Überfall', 'déjà vu 😀');
  client.check('database', client.CHECKS.WARNING, { message: 'slow' }, ['shard:1']);
  client.close((error) => {
    if (error) throw error;
  });
});
