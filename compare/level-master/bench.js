'use strict'
// level-master, measured: its master in this process, its slave in another one, over TCP on the loopback interface.
//
//   node bench.js disk|memory DIRECTORY ENTRIES BATCH VALUE
//
// prints entries a second, {"catch_up":...,"live":...}, or fails if the slave does not get everything.

const { fork } = require('node:child_process')
const { randomBytes } = require('node:crypto')
const { once } = require('node:events')
const net = require('node:net')
const path = require('node:path')
const { setImmediate: nextTurn, setTimeout: sleep } = require('node:timers/promises')
const { promisify } = require('node:util')

// Without numbers it is the slave.
const [store, directory, ...numbers] = process.argv.slice(2)
process.env.LEVEL_MASTER_STORE = store
const levelup = require('levelup')
const sublevel = require('level-sublevel')
const Master = require('level-master')

const open = async directory => sublevel(await promisify(levelup)(directory, { createIfMissing: true }))

// The last entry to be written: a slave that has it has all before it.
const LAST = '~last'

// How many entries a writer may be ahead of what was sent.
const AHEAD = 1_000

// Milliseconds.
const PATIENCE = 600_000

async function measure (entries, batch, value) {
  const rate = milliseconds => entries / milliseconds * 1000
  const figures = { catch_up: rate(await catchUp(entries, batch, value)), live: rate(await live(entries, batch, value)) }
  process.stdout.write(JSON.stringify(figures) + '\n', () => process.exit())
}

// A slave that begins when everything is written.
async function catchUp (entries, batch, value) {
  const master = await serve(path.join(directory, 'master'))
  await write(master.db, batches(entries, batch, value))
  // What the store still does behind it is not the slave's.
  await new Promise(resolve => setTimeout(resolve, 1000))
  const slave = follower(path.join(directory, 'slave'))
  const milliseconds = await slave.follow(master.port, entries + 1)
  await slave.end()
  await master.end()
  return milliseconds
}

// A slave that is there before anything is written.
async function live (entries, batch, value) {
  const master = await serve(path.join(directory, 'live-master'))
  const slave = follower(path.join(directory, 'live-slave'))
  const all = batches(entries, batch, value)
  const followed = slave.follow(master.port, entries + 1)
  await master.connected
  const start = performance.now()
  await write(master.db, all, master.sent)
  await followed
  const milliseconds = performance.now() - start
  await slave.end()
  await master.end()
  return milliseconds
}

async function serve (directory) {
  const db = await open(directory)
  const master = Master(db, 'master')
  let sent = 0
  const server = net.createServer(stream => {
    const log = master.createStream({ tail: true })
    log.on('data', () => sent++)
    // Slaves are killed.
    stream.on('error', () => {})
    stream.pipe(log).pipe(stream)
  })
  const connected = once(server, 'connection')
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const end = () => {
    server.close()
    return promisify(db.close).call(db)
  }
  return { db, port: server.address().port, connected, sent: () => sent, end }
}

// Made before anything is measured. Keys of 16 bytes; keys and values are text, since others do not survive.
function batches (entries, batch, value) {
  const noise = randomBytes(value + 4096).toString('base64')
  const all = Array.from({ length: entries }, (_, number) => {
    const from = (number * 7) % 4096
    return { type: 'put', key: randomBytes(8).toString('hex'), value: noise.slice(from, from + value) }
  })
  const batches = []
  for (let from = 0; from < entries; from += batch) batches.push(all.slice(from, from + batch))
  batches.push([{ type: 'put', key: LAST, value: '' + entries }])
  return batches
}

// One after the other. A writer who knows what was sent waits for it: what is not sent yet is queued in memory, and level-master
// takes the longer for each entry the longer that queue is.
async function write (db, batches, sent = () => Infinity) {
  const apply = promisify(db.batch)
  let written = 0
  for (const batch of batches) {
    while (written - sent() > AHEAD) await nextTurn()
    // Now: the master adds its log to the very list.
    written += batch.length
    await apply.call(db, batch)
  }
}

// A slave in another process.
function follower (directory) {
  // The slave prints where it begins on standard output.
  const child = fork(__filename, [store, directory], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
  child.on('exit', () => fail(new Error('the slave has ended')))
  return {
    // Milliseconds from the connection until it has everything, which is so many entries.
    follow: async (port, entries) => {
      await once(child, 'message')
      child.send({ port, entries })
      const [answer] = await once(child, 'message')
      if (answer.error) throw new Error(answer.error)
      return answer.milliseconds
    },
    end: () => {
      child.removeAllListeners('exit').kill('SIGKILL')
      return once(child, 'exit')
    }
  }
}

// The other process.
async function follow () {
  process.on('disconnect', () => process.exit())
  const db = await open(directory)
  const slave = Master.Slave(db, 'slave')
  process.send('ready')
  const [{ port, entries }] = await once(process, 'message')
  const start = performance.now()
  const stream = net.connect(port, '127.0.0.1')
  stream.pipe(slave.createStream()).pipe(stream)
  const get = promisify(db.get)
  let milliseconds
  do {
    await sleep(1)
    milliseconds = performance.now() - start
    if (milliseconds > PATIENCE) throw new Error('the slave does not get the last entry')
  } while (await get.call(db, LAST).then(() => false, () => true))
  const found = await count(db)
  const error = found === entries ? undefined : `the slave has ${found} entries of ${entries}`
  process.send({ milliseconds, error })
}

async function count (db) {
  let found = 0
  const keys = db.createKeyStream()
  keys.on('data', () => found++)
  await new Promise((resolve, reject) => keys.on('end', resolve).on('error', reject))
  return found
}

const fail = error => {
  console.error(error.message)
  process.exit(1)
}

if (numbers.length === 0) {
  follow().catch(error => process.send({ error: error.message }))
} else {
  measure(...numbers.map(Number)).catch(fail)
}
