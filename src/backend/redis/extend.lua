-- Extends the deadline of a request: `extend` of lifecycle/decision_rules.rs.
-- KEYS[1] the decision record
-- KEYS[2] the audit stream
-- ARGV    approval id, new time to decide from now in ms, decider, approximate limit of audit entries,
--         1 for an operator, retention after the deadline in seconds, approximate limit of refused
--         attempts
-- Returns the result and its details.
local id, now = ARGV[1], now_in_ms()
local state, at, is_same = status(id, now)
if state == 'unknown' then
  return { 'unknown' }
end
local request = redis.call('HMGET', REQUEST .. id, 'requester', 'self', 'approvers', 'task')
local function refused(result)
  return refuse(result, 'extend', id, request[4], ARGV[3], ARGV[7])
end
if state == 'withdraw' then
  return refused({ 'withdrawn' })
elseif state == 'expired' then
  return refused({ 'expired', whole(at) })
elseif state ~= 'open' then
  return refused({ 'decided', redis.call('HGET', KEYS[1], 'by'), whole(at), state })
end
local is_named, is_requester = roles(request[1], request[3], ARGV[3])
if ARGV[5] ~= '1' and (not is_named or (is_requester and request[2] ~= '1')) then
  return refused({ 'forbidden' })
elseif now + tonumber(ARGV[2]) < at then
  return refused({ 'earlier', whole(at) })
end
if not is_same then
  start_record(id)
end
local deadline = whole(now + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'deadline', deadline)
-- Warnings start again for the new deadline.
redis.call('HDEL', KEYS[1], 'warned')
keep(id, tonumber(deadline), now, ARGV[6])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'what', 'extend', 'approval', id,
  'task', request[4] or '', 'by', ARGV[3], 'until', deadline)
return { 'applied' }
