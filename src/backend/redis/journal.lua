#!lua
-- Records what a step answered. The first record wins.
-- KEYS[1] the task's journal
-- ARGV    the step's name, its entry, seconds to keep the journal
-- Returns the entry that was there; nothing when this one is recorded.
local recorded = redis.call('HGET', KEYS[1], ARGV[1])
if not recorded then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return recorded
