-- Reads the journal and the scopes of a task's stream, if both are small.
-- KEYS[1] the journal, KEYS[2] the heads of the stream
-- ARGV    the most fields of each, the most bytes of the journal, the field of the heads that holds the owner
-- Returns false when they are larger.
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) or redis.call('HLEN', KEYS[2]) > tonumber(ARGV[1]) then
  return false
end
local bytes = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  bytes = bytes + #field + redis.call('HSTRLEN', KEYS[1], field)
end
if bytes > tonumber(ARGV[2]) then
  return false
end
return { redis.call('HGETALL', KEYS[1]), redis.call('HKEYS', KEYS[2]), redis.call('HGET', KEYS[2], ARGV[3]) }
