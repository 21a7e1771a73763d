// A Minecraft client in offline mode that says in JSON lines what happens to it, and follows transfers as the game does:
// it connects again, with intent 3, to the host and port that the packet names.
//
//     node bot.js '{"host": "play.example.org", "port": 25565, "name": "Alice", "version": "1.21.1", "dial": "127.0.0.1"}'
//
// `dial`: what is really dialled, whatever the host is called. On standard input: "say TEXT" sends TEXT to the server as
// a plugin message (which servers of server.js send back), "quit" leaves.
'use strict'
const mc = require('minecraft-protocol')
const readline = require('readline')

const options = JSON.parse(process.argv[2])
const TRANSFERS_MAX = 4
let client = null
let transfers = 0

function tell (event, more = {}) {
  process.stdout.write(JSON.stringify({ event, ...more }) + '\n')
}

// The words of a component, whether it came as JSON (login) or as NBT (later).
function words (component) {
  if (typeof component === 'string') {
    try { return words(JSON.parse(component)) } catch { return component }
  }
  if (Array.isArray(component)) return component.map(words).join('')
  if (component === null || typeof component !== 'object') return String(component ?? '')
  if ('type' in component && 'value' in component) return words(component.value) // NBT
  return words(component.text ?? '') + (component.extra ? words(component.extra) : '')
}

function connect (host, port, intent) {
  let moving = false
  const made = mc.createClient({
    host: options.dial ?? host, port, fakeHost: host, username: options.name, auth: 'offline',
    version: options.version ?? '1.21.1', hideErrors: true, closeTimeout: 2000
  })
  client = made
  const write = made.write.bind(made)
  made.write = (name, params) => write(name, name === 'set_protocol' ? { ...params, nextState: intent } : params)
  made.on('success', packet => tell('login', { name: packet.username, uuid: packet.uuid }))
  made.on('playerJoin', () => tell('configured'))
  made.on('login', () => tell('play', { host, port, intent }))
  made.on('custom_payload', packet => {
    if (packet.channel === 'fairlead:echo') tell('echo', { text: packet.data.toString() })
  })
  made.on('transfer', packet => {
    tell('transfer', { host: packet.host, port: packet.port })
    if (transfers++ >= TRANSFERS_MAX) return made.end('moved too often')
    moving = true
    made.end('transferred')
    connect(packet.host, packet.port, 3)
  })
  made.on('disconnect', packet => tell('kicked', { text: words(packet.reason) }))
  made.on('kick_disconnect', packet => tell('kicked', { text: words(packet.reason) }))
  made.on('error', error => tell('error', { text: String(error.message ?? error) }))
  made.on('end', reason => {
    if (moving) return
    tell('end', { reason: String(reason) })
    process.exit(0)
  })
}

readline.createInterface({ input: process.stdin }).on('line', line => {
  const [command, ...rest] = line.split(' ')
  if (command === 'say') client.write('custom_payload', { channel: 'fairlead:echo', data: Buffer.from(rest.join(' ')) })
  if (command === 'quit') client.end('asked to')
})
connect(options.host, options.port, options.intent ?? 2)
