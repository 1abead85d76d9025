-- Sets the retention of these keys.
-- KEYS    any; the last one is a hash that holds the owner
-- ARGV    seconds; for an ended task also the field that holds the owner, and the task's digest
-- Returns 0 when another task owns the keys.
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
