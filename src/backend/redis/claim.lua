-- Assigns an idempotency key to a task, unless the key is already assigned.
-- KEYS[1] the key
-- ARGV    task id, seconds to keep it
-- Returns the value of the key after the call.
local stored = redis.call('GET', KEYS[1])
if stored then
  return stored
end
local claim = 'unsent ' .. ARGV[1]
redis.call('SET', KEYS[1], claim, 'EX', ARGV[2])
return claim
