#!lua
-- Makes an idempotency key stand for a task, unless it stands for one already.
-- KEYS[1] the key
-- ARGV    task id, seconds to keep it
-- Returns what the key holds after that.
local stored = redis.call('GET', KEYS[1])
if stored then
  return stored
end
local claim = 'unsent ' .. ARGV[1]
redis.call('SET', KEYS[1], claim, 'EX', ARGV[2])
return claim
