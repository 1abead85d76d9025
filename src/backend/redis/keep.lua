#!lua
-- Says how long these keys are kept from now on.
-- KEYS    any; the last one is a hash that says whose they are
-- ARGV    seconds; of a task that has ended also the field that says whose they are, and its digest
-- Returns 0 when they are another task's.
if ARGV[2] then
  local owner = redis.call('HGET', KEYS[#KEYS], ARGV[2])
  if owner == ARGV[3] then
    redis.call('HSET', KEYS[#KEYS], ARGV[2], owner .. ' ended')
  elseif owner and owner ~= ARGV[3] .. ' ended' then
    return 0
  end
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[1])
end
return #KEYS
