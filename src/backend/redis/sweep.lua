#!lua
-- Takes entries of the outbox that nobody is known to have sent: a newer score keeps others off.
-- KEYS[1] the outbox
-- ARGV    age in ms, how many
-- Returns the entries.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local old = string.format('%.0f', now - tonumber(ARGV[1]))
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', old, 'LIMIT', 0, ARGV[2])
for _, entry in ipairs(entries) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), entry)
end
return entries
