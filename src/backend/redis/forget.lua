#!lua
-- Forgets a suspension that has ended: `forget` of lifecycle/park.rs.
-- KEYS[1] the park record
-- ARGV    digest of no message
-- Returns 0 when the task is suspended.
local park = redis.call('HMGET', KEYS[1], 'number', 'ended')
if not park[1] then
  return 1
elseif park[2] ~= '1' then
  return 0
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
return 1
