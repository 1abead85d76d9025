-- Records that the task of an idempotency key was confirmed. The retention starts again.
-- KEYS[1] the key
-- ARGV    task id, seconds to keep it
local stored = redis.call('GET', KEYS[1])
if not stored or stored == 'unsent ' .. ARGV[1] then
  stored = 'sent ' .. ARGV[1]
  redis.call('SET', KEYS[1], stored, 'EX', ARGV[2])
end
return stored
