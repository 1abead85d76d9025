-- Records the result of a step. The first record wins.
-- KEYS[1] the task's journal
-- ARGV    the step's name, its entry, retention of the journal in seconds, the field that names the
--         owner, digest of the task, 1 for a fresh run
-- Returns the existing entry; nothing when this one is recorded.
local field, digest = ARGV[4], ARGV[5]
local owner = redis.call('HGET', KEYS[1], field)
if owner ~= digest then
  local is_own = owner == digest .. ' ended'
  if owner and not (is_own and ARGV[6] ~= '1') then
    -- It belongs to another task, or an earlier run of the same id left it.
    redis.call('DEL', KEYS[1])
  end
  -- A journal without an owner was started by an older worker, and stays as it is.
  if owner or redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[1], field, digest)
  end
end
local recorded = redis.call('HGET', KEYS[1], ARGV[1])
if not recorded then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return recorded
