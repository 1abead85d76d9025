-- Gives a request more time: `extend` of lifecycle/vote.rs.
-- KEYS[1] the decision record
-- KEYS[2] the audit stream
-- ARGV    approval id, how much longer from now in ms, who, how many entries the audit keeps about, 1 if
--         that is an operator, how long what was said is kept after the deadline in seconds
-- Returns the answer, and what belongs to it.
local id, now = ARGV[1], now_in_ms()
local state, at, is_same = standing(id, now)
if state == 'unknown' then
  return { 'unknown' }
elseif state == 'withdraw' then
  return { 'withdrawn' }
elseif state == 'expired' then
  return { 'expired', whole(at) }
elseif state ~= 'open' then
  return { 'decided', redis.call('HGET', KEYS[1], 'by'), whole(at), state }
end
local ask = redis.call('HMGET', ASK .. id, 'requester', 'self', 'approvers', 'task')
local is_named, is_requester = roles(ask[1], ask[3], ARGV[3])
if ARGV[5] ~= '1' and (not is_named or (is_requester and ask[2] ~= '1')) then
  return { 'forbidden' }
elseif now + tonumber(ARGV[2]) < at then
  return { 'earlier', whole(at) }
end
if not is_same then
  turn_to(id)
end
local deadline = whole(now + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'deadline', deadline)
-- People are warned of the new deadline anew.
redis.call('HDEL', KEYS[1], 'warned')
keep(id, tonumber(deadline), now, ARGV[6])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'what', 'extend', 'approval', id,
  'task', ask[4] or '', 'by', ARGV[3], 'until', deadline)
return { 'applied' }
