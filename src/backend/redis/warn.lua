-- Records a deadline warning of a request: once per percentage, whichever process calls.
-- KEYS[1] the decision record
-- KEYS[2] the stream of notes
-- ARGV    approval id, elapsed part of its time in percent, approximate limit of notes,
--         retention of a decision in seconds
-- Returns 1 when the caller must send the warning now.
local id, percent, now = ARGV[1], tonumber(ARGV[2]), now_in_ms()
local state, deadline, is_same = status(id, now)
local request = redis.call('HMGET', REQUEST .. id, 'at', 'task')
local requested_at = tonumber(request[1] or '0')
if state ~= 'open' or now < requested_at + math.floor((deadline - requested_at) * percent / 100) then
  return 0
end
if not is_same then
  start_record(id)
end
if percent <= tonumber(redis.call('HGET', KEYS[1], 'warned') or '0') then
  return 0
end
redis.call('HSET', KEYS[1], 'warned', ARGV[2])
keep(id, deadline, now, ARGV[4])
-- Stored records name the approval service `clerk`: the name of its verb when they were first written.
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'what', 'warn', 'approval', id,
  'task', request[2] or '', 'by', 'clerk', 'percent', ARGV[2], 'deadline', whole(deadline))
return 1
