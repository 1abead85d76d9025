-- Notes that people are warned of a question's deadline: once for each part of its time, whoever asks.
-- KEYS[1] the decision record
-- KEYS[2] the audit stream
-- ARGV    approval id, how much of its time has passed in percent, how many entries the audit keeps
--         about, how long a decision is kept in seconds
-- Returns 1 when they are to be warned now.
local id, percent, now = ARGV[1], tonumber(ARGV[2]), now_in_ms()
local state, deadline, is_same = standing(id, now)
local ask = redis.call('HMGET', ASK .. id, 'at', 'task')
local asked = tonumber(ask[1] or '0')
if state ~= 'open' or now < asked + math.floor((deadline - asked) * percent / 100) then
  return 0
end
if not is_same then
  turn_to(id)
end
if percent <= tonumber(redis.call('HGET', KEYS[1], 'warned') or '0') then
  return 0
end
redis.call('HSET', KEYS[1], 'warned', ARGV[2])
keep(id, deadline, now, ARGV[4])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'what', 'warn', 'approval', id,
  'task', ask[2] or '', 'by', 'clerk', 'percent', ARGV[2], 'deadline', whole(deadline))
return 1
