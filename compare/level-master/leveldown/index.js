'use strict'
// The leveldown of level-master's time, 0.1, as levelup 0.6 calls it: on a current one, or in memory.

const current = process.env.LEVEL_MASTER_STORE === 'memory' ? require('memdown') : require('leveldown-now')

module.exports = function (location) {
  const db = current(location)
  return {
    open: (options, done) => db.open({ ...options }, done),
    close: done => db.close(done),
    get: (key, options, done) => db.get(key, { ...options }, done),
    put: (key, value, options, done) => db.put(key, value, { ...options }, done),
    del: (key, options, done) => db.del(key, { ...options }, done),
    batch: (changes, options, done) => db.batch(changes, { ...options }, done),
    approximateSize: (start, end, done) => db.approximateSize(start, end, done),
    iterator: options => iterator(db, options)
  }
}

// Ranges had a start and an end, in the order in which they are read, and what is empty was no bound.
function iterator (db, { start, end, reverse, limit, keyAsBuffer, valueAsBuffer }) {
  const range = { reverse: !!reverse, limit: limit ?? -1, keyAsBuffer: !!keyAsBuffer, valueAsBuffer: !!valueAsBuffer }
  const [low, high] = reverse ? [end, start] : [start, end]
  if (low?.length) range.gte = low
  if (high?.length) range.lte = high
  const entries = db.iterator(range)
  return {
    next: done => entries.next((error, key, value) => {
      // At the end it says nothing, and not that there is nothing.
      if (error || key === undefined) return done(...(error ? [error] : []))
      done(null, key, value)
    }),
    end: done => entries.end(done || (() => {}))
  }
}
