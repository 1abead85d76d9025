-- Deletes a suspension that has ended: `forget` of lifecycle/suspension.rs.
-- KEYS[1] the suspension record
-- ARGV    a digest that no message has
-- Returns 0 when the task is suspended.
local suspension = redis.call('HMGET', KEYS[1], 'number', 'ended')
if not suspension[1] then
  return 1
elseif suspension[2] ~= '1' then
  return 0
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
return 1
