// A Minecraft server in offline mode that says in JSON lines who joins, and does what standard input says:
//
//     node server.js '{"port": 25566, "version": "1.21.1", "name": "lobby"}'
//
// "transfer NAME HOST PORT" sends a player elsewhere (since 1.20.5), "kick NAME TEXT" throws it out. Plugin messages on
// the channel fairlead:echo are sent back with the server's name before them.
'use strict'
const mc = require('minecraft-protocol')
const readline = require('readline')

const options = JSON.parse(process.argv[2])
const players = new Map()

function tell (event, more = {}) {
  process.stdout.write(JSON.stringify({ event, ...more }) + '\n')
}

const server = mc.createServer({
  'online-mode': false, host: '127.0.0.1', port: options.port ?? 0, version: options.version ?? '1.21.1',
  motd: options.name, 'max-players': 50, hideErrors: true
})
const data = require('minecraft-data')(server.version)

server.on('listening', () => tell('listening', { port: server.socketServer.address().port }))
server.on('error', error => tell('error', { text: String(error.message ?? error) }))
server.on('playerJoin', player => {
  players.set(player.username, player)
  tell('join', { name: player.username, host: player.serverHost, address: player.socket.remoteAddress })
  player.on('error', error => tell('error', { text: String(error.message ?? error) }))
  player.on('end', () => {
    players.delete(player.username)
    tell('leave', { name: player.username })
  })
  player.on('custom_payload', packet => {
    if (packet.channel !== 'fairlead:echo') return
    player.write('custom_payload', { channel: packet.channel, data: Buffer.from(`${options.name}: ${packet.data}`) })
  })
  player.write('login', { ...data.loginPacket, entityId: 1, enforcesSecureChat: false })
})

readline.createInterface({ input: process.stdin }).on('line', line => {
  const [command, name, ...rest] = line.split(' ')
  const player = players.get(name)
  if (!player) return tell('unknown', { name })
  if (command === 'transfer') player.write('transfer', { host: rest[0], port: Number(rest[1]) })
  if (command === 'kick') player.end(rest.join(' '))
})
